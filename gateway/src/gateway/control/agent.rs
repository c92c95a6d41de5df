//! What the control thread does about its agent: notices that it ended, tells the next one everything,
//! and keeps what cannot be told meanwhile.

use std::cell::Ref;

use super::Control;
use crate::{
    admin::{metrics::Reading, socket::ConfinementStatus},
    confinement::Confinement,
    kernel::{
        Filter,
        agent::{Ending, News},
    },
};

impl Control {
    /// The kernel half, when there is one and it can be told something.
    pub(super) fn told_kernel(&self) -> Ref<'_, Option<Filter>> {
        Ref::map(self.kernel.borrow(), |kernel| match kernel {
            Some(filter) if filter.is_told() => kernel,
            _ => &None,
        })
    }

    /// Says what happened to the agent, and tells a new one what the one before it knew.
    pub(in crate::gateway) fn look_after_agent(&self) {
        for news in self.agent.news() {
            if let News::Ended(Ending { how, again_in }) = news {
                self.metrics.borrow_mut().agents_ended += 1;
                // The program that it started cannot be asked about any more.
                self.succession.borrow_mut().was_started = false;
                tracing::error!(
                    detail = how,
                    again_in_s = again_in.as_secs_f64(),
                    "kernel agent ended; the XDP program filters on, and another agent is started"
                );
            }
        }
        if self.agent.is_gone() {
            if self.agent.was_lost() {
                self.metrics.borrow_mut().agents_ended += 1;
                tracing::error!(
                    "kernel agent gone, with the process that would start another; the XDP program \
                     filters on and can be told nothing more: restart the daemon"
                );
            }
            return;
        }
        if self.agent.fell_silent() {
            tracing::error!(
                "kernel agent does not answer; the XDP program filters on, and is told again when it does"
            );
        }
        self.tell_new_agent();
    }

    fn tell_new_agent(&self) {
        if !self.agent.is_there() {
            return;
        }
        let told = match self.kernel.borrow().as_ref() {
            Some(filter) if !filter.is_told() => filter.tell_all(),
            _ => return,
        };
        match told {
            Ok(notices) => {
                tracing::info!(detail = notices.join("; "), "kernel agent knows everything again");
                self.tell_bans();
                if let Err(why) = self.rewrite_kernel() {
                    tracing::error!(detail = why, "kernel agent not told of all");
                }
            }
            Err(error) => {
                tracing::error!(error = %error, "kernel agent does not take over the XDP program");
            }
        }
    }

    /// For `portcullis status`.
    pub(super) fn confinement_status(&self) -> ConfinementStatus {
        let Confinement { capabilities, is_confined_to_files, is_confined_to_calls, lacking } =
            &self.confinement;
        ConfinementStatus {
            capabilities: capabilities.iter().map(ToString::to_string).collect(),
            files: *is_confined_to_files,
            system_calls: *is_confined_to_calls,
            lacking: lacking.clone(),
            agent: self.agent.is_there(),
        }
    }

    /// For the page of metrics.
    pub(super) fn agent_readings(&self) -> [Reading; 2] {
        let ended = self.metrics.borrow().agents_ended;
        let is_up = self.agent.is_there();
        [
            Reading {
                name: "gateway_agent_up",
                help: "1 while the agent that keeps the kernel's maps is there.",
                kind: "gauge",
                series: vec![(Vec::new(), f64::from(u8::from(is_up)))],
            },
            Reading {
                name: "gateway_agent_ended_total",
                help: "Agents that ended while the daemon served.",
                kind: "counter",
                series: vec![(Vec::new(), ended as f64)],
            },
        ]
    }
}
