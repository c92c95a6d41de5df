//! Who has wider limits in the kernel, because good clients come from there, and who narrower ones,
//! because of what was refused.

use std::{collections::HashMap, time::Duration, time::Instant};

use gateway_ebpf::Source;

use super::Control;
use crate::{
    kernel::Class,
    policy::{
        penalty::{Arrived, overlaps},
        vouch::Voucher,
    },
    time,
};

/// Wider limits end so long after the last good request but one.
const WIDER_LASTS: Duration = Duration::from_secs(600);

/// Narrower ones so long after the last refusal but one; points halve in about that.
const NARROWER_LASTS: Duration = Duration::from_secs(60);

/// The sources that have limits of their own, as the kernel was told.
#[derive(Debug, Default)]
pub(super) struct Classes(HashMap<Source, (i32, Instant)>);

impl Classes {
    /// For how long the kernel is to be told so, if it must be told.
    fn news(&self, source: Source, doublings: i32, now: Instant) -> Option<Duration> {
        let present = self.0.get(&source).filter(|(_, until)| now < *until);
        let lasts = if doublings > 0 { WIDER_LASTS } else { NARROWER_LASTS };
        match present {
            None => (doublings != 0).then_some(lasts),
            Some((other, _)) if *other != doublings => Some(lasts),
            // In good time before it ends.
            Some((_, until)) => (*until < now + lasts / 2).then_some(lasts),
        }
    }

    fn note(&mut self, source: Source, doublings: i32, until: Instant) {
        if doublings == 0 {
            self.0.remove(&source);
        } else {
            self.0.insert(source, (doublings, until));
        }
    }

    /// Forgets what has ended.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, (_, until)| now < *until);
    }
}

impl Control {
    /// Good clients speak for their sources.
    pub(in super::super) fn vouch(&self, vouchers: &[Voucher]) {
        {
            let mut ledger = self.ledger.borrow_mut();
            vouchers.iter().for_each(|voucher| ledger.vouch(*voucher));
        }
        // The kernel never sees a packet of who comes through a proxy.
        let direct = vouchers.iter().filter(|voucher| voucher.arrived == Arrived::Directly);
        self.classify(direct.map(|voucher| voucher.source));
    }

    /// Gives sources the limits that they have earned, where that is news.
    pub(super) fn classify(&self, sources: impl Iterator<Item = Source>) {
        let kernel = self.told_kernel();
        let Some(kernel) = kernel.as_ref() else { return };
        let (ledger, mut classes) = (self.ledger.borrow(), self.classes.borrow_mut());
        let now = time::monotonic();
        for source in sources {
            let doublings = ledger.doublings(source, now);
            let Some(lasts) = classes.news(source, doublings, now) else { continue };
            // No limit holds for who is exempt.
            if overlaps(&self.exempt.borrow(), source) {
                continue;
            }
            match kernel.set_class(source, Class::doubled(doublings).unwrap_or_default(), lasts) {
                Ok(true) => classes.note(source, doublings, now + lasts),
                // As many as there can be have limits of their own; this one has everybody's.
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(source = %source, error = %error, "limits of a source not set");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn the_kernel_is_told_what_is_news() {
        let now = time::monotonic();
        let source = Source::from(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
        let mut classes = Classes::default();
        assert_eq!(classes.news(source, 0, now), None, "everybody's");
        assert_eq!(classes.news(source, 2, now), Some(WIDER_LASTS));
        assert_eq!(classes.news(source, -1, now), Some(NARROWER_LASTS));
        classes.note(source, 2, now + WIDER_LASTS);
        for (later_s, doublings, expected) in [
            (0, 2, None),
            (299, 2, None),
            (301, 2, Some(WIDER_LASTS)), // renewed
            (1, 3, Some(WIDER_LASTS)),
            (1, -1, Some(NARROWER_LASTS)),
            (1, 0, Some(NARROWER_LASTS)), // taken back
            (601, 0, None),               // ended by itself
        ] {
            let later = now + Duration::from_secs(later_s);
            assert_eq!(classes.news(source, doublings, later), expected, "{later_s} {doublings}");
        }
        classes.note(source, 0, now);
        assert_eq!(classes.news(source, 0, now), None);
    }
}
