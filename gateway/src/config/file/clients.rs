//! `[clients]`: what a client may take of time and work.

use std::time::Duration;

use super::{
    super::{
        section::{Section, integer, text},
        value::{self, Between, duration_between},
    },
    HOUR, MINUTE, SECOND,
};
use crate::http::guard::{FrameRate, Limits, MinRate};

/// The table is complete as it is written; what is not written is the default.
pub(in super::super) type Clients = Limits;

/// Reads `[clients]`.
pub(super) fn read(section: &Section<'_>) -> Clients {
    let default = Limits::default();
    let phase = |key, default| {
        let bounds = Between {
            min: SECOND / 10,
            max: 10 * MINUTE,
            why: "shorter refuses honest clients far away, longer holds a place for nobody",
        };
        section.or(key, text(duration_between(bounds)), default).value
    };
    let whole = Between { min: Duration::ZERO, max: 24 * HOUR, why: "\"0s\" is without end" };
    let request = section.or("request", text(duration_between(whole)), Duration::ZERO).value;
    let head_max_bytes = section.or("head_size", text(head_size), default.head_max_bytes);
    Limits {
        proxy_header: phase("proxy_header", default.proxy_header),
        handshake: phase("handshake", default.handshake),
        head: phase("head", default.head),
        idle: phase("idle", default.idle),
        body: least(section, "body", "clients.body", default.body),
        answer: least(section, "answer", "clients.answer", default.answer),
        request: (!request.is_zero()).then_some(request),
        head_max_bytes: head_max_bytes.value,
        fields_max: section
            .or("fields", integer(8..=1_000, "each costs a look"), default.fields_max)
            .value,
        streams_max: section
            .or("streams", integer(1..=10_000, "each may hold a request"), default.streams_max)
            .value,
        control_frames: most(
            section,
            "control_frames",
            "clients.control_frames",
            default.control_frames,
        ),
        resets: most(section, "resets", "clients.resets", default.resets),
    }
}

/// Below 8 KiB no parser works, above 1 MiB a head is an attack.
fn head_size(text: &str) -> Result<usize, super::super::section::Refused> {
    let bytes = value::bytes(text)?;
    usize::try_from(bytes).ok().filter(|bytes| (8 << 10..=1 << 20).contains(bytes)).ok_or_else(
        || {
            super::super::section::Refused::bad(format!(
                "is {text}; write one from 8KiB to 1MiB: tokens need kilobytes, nobody more"
            ))
        },
    )
}

fn least(
    section: &Section<'_>,
    key: &'static str,
    path: &'static str,
    default: MinRate,
) -> MinRate {
    let Some(table) = section.child(key, path) else { return default };
    let bounds = Between {
        min: SECOND / 10,
        max: HOUR,
        why: "shorter cuts clients on a bad link, longer is none",
    };
    MinRate {
        grace: table
            .must("grace", text(duration_between(bounds)))
            .map_or(default.grace, |at| at.value),
        bytes_per_s: table
            .must("rate", text(value::bytes_per_s))
            .map_or(default.bytes_per_s, |at| at.value),
    }
}

fn most(
    section: &Section<'_>,
    key: &'static str,
    path: &'static str,
    default: FrameRate,
) -> FrameRate {
    let Some(table) = section.child(key, path) else { return default };
    FrameRate {
        per_s: table.must("rate", text(value::rate_per_s)).map_or(default.per_s, |at| at.value),
        burst: table
            .must("burst", integer(1..=1_000_000_000, "frames at once"))
            .map_or(default.burst, |at| at.value),
    }
}
