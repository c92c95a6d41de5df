//! Many short values in few large allocations.
//!
//! What is kept of a handshake outlives its connection by up to an hour. Allocated one by one, between
//! the buffers of connections, twenty thousand such values would each hold on to a page of what a crowd
//! gives back when it goes. Here they are cut into pieces that lie side by side.

/// Octets of a piece: a value of some hundred octets wastes few of them, one of two thousand is put
/// together from eight.
const PIECE_BYTES: usize = 256;

/// Pieces of one allocation of 64 KiB: a listener with few clients takes no more than that.
const CHUNK_PIECES: usize = 256;

type Piece = [u8; PIECE_BYTES];

/// A value that was put in; [`Pieces::take`] of the same pieces gives it back.
#[derive(Debug)]
pub(super) struct Put {
    first: u32,
    bytes: usize,
}

/// Values, cut into pieces. It keeps the room of the most that there ever were.
#[derive(Default)]
pub(super) struct Pieces {
    chunks: Vec<Box<[Piece]>>,
    /// Of each piece the one that goes on with its value.
    next: Vec<u32>,
    free: Vec<u32>,
}

impl Pieces {
    /// Copies a value. `None`: it is empty, or there are more pieces than can be numbered.
    pub(super) fn put(&mut self, value: &[u8]) -> Option<Put> {
        let mut first = None;
        // From its end, so that each piece knows the one that follows.
        for part in value.chunks(PIECE_BYTES).rev() {
            let Some(number) = self.blank() else {
                // What was put so far is given up again.
                first.map(|first| self.take(Put { first, bytes: 0 }));
                return None;
            };
            self.piece(number)[..part.len()].copy_from_slice(part);
            self.next[number as usize] = first.unwrap_or(number);
            first = Some(number);
        }
        first.map(|first| Put { first, bytes: value.len() })
    }

    /// Gives it back and keeps nothing of it: it may be as good as keys.
    pub(super) fn take(&mut self, put: Put) -> Vec<u8> {
        let Put { first, bytes } = put;
        let mut value = Vec::with_capacity(bytes);
        let mut number = first;
        loop {
            let piece = self.piece(number);
            let length = bytes.saturating_sub(value.len()).min(PIECE_BYTES);
            value.extend_from_slice(&piece[..length]);
            piece.fill(0);
            self.free.push(number);
            let next = self.next[number as usize];
            // The last one goes on with itself.
            if next == number {
                return value;
            }
            number = next;
        }
    }

    fn piece(&mut self, number: u32) -> &mut Piece {
        let number = number as usize;
        &mut self.chunks[number / CHUNK_PIECES][number % CHUNK_PIECES]
    }

    /// A piece that belongs to no value.
    fn blank(&mut self) -> Option<u32> {
        if self.free.is_empty() {
            let from = u32::try_from(self.next.len()).ok()?;
            let until = from.checked_add(u32::try_from(CHUNK_PIECES).ok()?)?;
            self.chunks.push(vec![[0; PIECE_BYTES]; CHUNK_PIECES].into_boxed_slice());
            self.next.extend(from..until);
            self.free.extend((from..until).rev());
        }
        self.free.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 7 + length) as u8).collect()
    }

    #[test]
    fn what_is_put_in_comes_out() {
        let mut pieces = Pieces::default();
        assert!(pieces.put(&[]).is_none());
        let lengths = [1, 255, 256, 257, 512, 1_500, 5_000, 70_000];
        let put: Vec<Put> =
            lengths.iter().map(|length| pieces.put(&value(*length)).unwrap()).collect();
        for (length, put) in lengths.iter().zip(put) {
            assert_eq!(pieces.take(put), value(*length));
        }
        assert!(pieces.chunks.iter().flatten().flatten().all(|octet| *octet == 0), "nothing stays");
    }

    #[test]
    fn room_is_used_again() {
        let mut pieces = Pieces::default();
        let mut kept = std::collections::VecDeque::new();
        for number in 0..10_000 {
            let value = value(number % 1_500 + 1);
            kept.push_back((pieces.put(&value).unwrap(), value));
            if kept.len() > 100 {
                // Not always the oldest.
                let (put, value) = kept.remove(number % 100).unwrap();
                assert_eq!(pieces.take(put), value, "{number}");
            }
        }
        // A hundred of at most six pieces.
        assert!(pieces.chunks.len() <= 600_usize.div_ceil(CHUNK_PIECES) + 1);
    }
}
