//! What keeps the clock, as it answers.

use gateway::host::chrony::{answer, question};

/// An answer is read or not; one that is read is of the question asked, and its figures are numbers. The
/// first four octets are the number of the question.
pub(crate) fn chrony(bytes: &[u8]) {
    let Some((sequence, bytes)) = bytes.split_first_chunk() else { return };
    let sequence = u32::from_be_bytes(*sequence);
    // Nobody's question is an answer.
    assert_eq!(answer(&question(sequence), sequence), None);
    let Some(tracking) = answer(bytes, sequence) else { return };
    assert!(bytes.len() >= question(sequence).len(), "shorter than the report");
    assert_eq!(bytes[16..20], sequence.to_be_bytes(), "the answer to another question");
    assert_eq!((bytes[0], bytes[1]), (6, 2), "no answer of this protocol");
    assert!(tracking.offset_s.is_finite() && tracking.max_error_s().is_finite());
    assert!(tracking.max_error_s() >= tracking.offset_s.abs());
    if tracking.is_synchronized() {
        assert!(tracking.leap != 3 && tracking.stratum != 0 && tracking.reference_id != 0);
    }
    // The report ends where it ends.
    assert_eq!(answer(&[bytes, b"more"].concat(), sequence), Some(tracking));
}
