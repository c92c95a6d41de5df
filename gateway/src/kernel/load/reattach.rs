//! Interfaces that went and came back while the filter was in force.
//!
//! A device that is deleted ends its link, and one of the same name that is made later knows
//! nothing of it. Nobody reloads a daemon for a cable that was pulled out of a virtual machine.

use super::{Kernel, Undo, attached, find_interfaces, pinned_on, refuse_foreign};
use crate::kernel::{Attached, KernelError, Notice};

/// What became of an interface that was found without the program.
#[derive(Debug)]
pub struct Reattached {
    /// Its name.
    pub interface: String,
    /// How the program runs there now, or why it does not.
    pub result: Result<Attached, KernelError>,
}

impl Kernel {
    /// Guards every configured interface again that is without the program; those that are guarded
    /// are not touched. Rules, bans, counters and whether it drops stay as they are.
    pub fn reattach(&mut self) -> Vec<Reattached> {
        let guarded = self.settings.interfaces.iter().zip(&self.slots);
        let lost: Vec<(String, u32)> = guarded
            .filter(|&(name, &slot)| attached(name, &self.pins.link(slot)).is_none())
            .map(|(name, slot)| (name.clone(), *slot))
            .collect();
        lost.into_iter()
            .map(|(interface, slot)| {
                let result = self.reattach_one(&interface, slot);
                Reattached { interface, result }
            })
            .collect()
    }

    fn reattach_one(&mut self, name: &str, slot: u32) -> Result<Attached, KernelError> {
        let names = [name.to_owned()];
        let interfaces = find_interfaces(&names)?;
        let pinned = self.pins.links()?;
        refuse_foreign(&interfaces, &pinned)?;
        let mut undo = Undo::default();
        undo.watch(self.pins.directory())?;
        // The status tells the mode; how it was come to is of no interest now.
        let mut notices: Vec<Notice> = Vec::new();
        for interface in &interfaces {
            if pinned_on(interface, &pinned).is_none() {
                self.attach(interface, slot, None, self.settings.mode, &mut notices)?;
            }
        }
        undo.keep();
        attached(name, &self.pins.link(slot))
            .ok_or_else(|| KernelError::NoInterface { interface: name.to_owned() })
    }
}
