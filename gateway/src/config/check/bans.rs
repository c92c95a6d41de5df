//! `[bans]`: a ladder that rises.

use super::{
    super::{Bans, file},
    Check,
};

impl Check<'_> {
    pub(super) fn bans(&self, written: &file::Bans) -> Bans {
        for pair in written.ladder.windows(2) {
            if pair[1].value <= pair[0].value {
                let text = format!(
                    "bans.ladder has {} after {}; write each ban longer than the one before",
                    humantime::format_duration(pair[1].value),
                    humantime::format_duration(pair[0].value)
                );
                self.contradiction(pair[1].place, text);
            }
        }
        Bans {
            enabled: written.enabled.value,
            threshold: written.threshold.value,
            half_life: written.half_life.value,
            ladder: written.ladder.iter().map(|rung| rung.value).collect(),
            never: written.never.clone(),
        }
    }
}
