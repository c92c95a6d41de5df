//! Messages between the daemon and its agent.

use gateway::kernel::agent::{
    News,
    channel::Joiner,
    message::{Answer, Request, decode, encode},
    wire::Wire,
};

/// What is a message has one form only; and any parts are joined or refused.
pub(crate) fn agent(bytes: &[u8]) {
    one_form::<Request>(bytes);
    one_form::<Answer>(bytes);
    one_form::<News>(bytes);
    let mut joiner = Joiner::default();
    for part in bytes.chunks(9) {
        if let Ok(Some(message)) = joiner.add(part) {
            assert!(message.bytes.len() < bytes.len());
        }
    }
}

fn one_form<T: Wire>(bytes: &[u8]) {
    if let Ok(message) = decode::<T>(bytes) {
        assert_eq!(encode(&message), bytes);
    }
}
