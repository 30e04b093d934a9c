//! What the server has of a shared region, as far as is known here: it tells the changes of the two sides apart.
#![forbid(unsafe_code)]

use std::ops::Range;

use farcall_marshal::status::CuResult;

/// Changes are looked for in pieces of this size.
pub(super) const PIECE: usize = 4096;

/// In what the program's changes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grain {
    /// Whole pieces: the device cannot have changed anything beside them.
    Piece,
    /// The very bytes.
    Byte,
}

/// The server's bytes of a region.
pub(super) struct Mirror {
    /// As last known.
    bytes: Vec<u8>,
    /// What went there while fetches were under way, each with the number of the last of those.
    sent: Vec<(u64, Range<usize>)>,
    /// Number of the last fetch that was taken over.
    taken: u64,
}

impl Mirror {
    /// Of a region that is new on the server, and so zero.
    pub(super) fn new(len: usize) -> Self {
        Self {
            bytes: vec![0; len],
            sent: Vec::new(),
            taken: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Where `new`, the program's bytes, differs. `None`: in more than `runs_max` runs.
    pub(super) fn changes(
        &self,
        new: &[u8],
        grain: Grain,
        runs_max: usize,
    ) -> Option<Vec<Range<usize>>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let pieces = new.chunks(PIECE).zip(self.bytes.chunks(PIECE));
        for (index, (new, old)) in pieces.enumerate() {
            if new == old {
                continue;
            }
            let at = index * PIECE;
            let mut add = |run: Range<usize>| match runs.last_mut() {
                Some(last) if last.end == at + run.start => last.end = at + run.end,
                _ => runs.push(at + run.start..at + run.end),
            };
            match grain {
                Grain::Piece => add(0..new.len()),
                Grain::Byte => differences(new, old).for_each(add),
            }
            if runs.len() > runs_max {
                return None;
            }
        }
        Some(runs)
    }

    /// These bytes of the program's are about to go there; which. `asked`: the number of the last fetch, if one is under
    /// way.
    pub(super) fn send(&mut self, range: Range<usize>, new: &[u8], asked: Option<u64>) -> &[u8] {
        let (Some(old), Some(new)) = (self.bytes.get_mut(range.clone()), new.get(range.clone()))
        else {
            return &[];
        };
        old.copy_from_slice(new);
        if let Some(asked) = asked {
            self.sent.push((asked, range));
        }
        old
    }

    /// Takes over what fetch `number` brought, and has the bytes written that the device changed. Not what the program
    /// changed after it was asked for: of those the fetch may have the old ones. Nothing, if a later one was taken over
    /// before: fetches are as new as their numbers say.
    pub(super) fn take(
        &mut self,
        number: u64,
        new: &[u8],
        mut write: impl FnMut(usize, &[u8]) -> CuResult,
    ) -> CuResult {
        if self.taken > number {
            return Ok(());
        }
        self.taken = number;
        let mut known = [0; PIECE];
        let pieces = new.chunks(PIECE).zip(self.bytes.chunks_mut(PIECE));
        for (index, (new, old)) in pieces.enumerate() {
            if new == old {
                continue;
            }
            let at = index * PIECE;
            let Some(known) = known.get_mut(..new.len()) else {
                continue;
            };
            known.copy_from_slice(new);
            for (_, range) in self.sent.iter().filter(|(asked, _)| *asked >= number) {
                let within = range.start.max(at)..range.end.min(at + new.len());
                if within.is_empty() {
                    continue;
                }
                let within = within.start - at..within.end - at;
                if let (Some(known), Some(old)) = (known.get_mut(within.clone()), old.get(within)) {
                    known.copy_from_slice(old);
                }
            }
            for run in differences(known, old) {
                write(at + run.start, known.get(run).unwrap_or_default())?;
            }
            old.copy_from_slice(known);
        }
        Ok(())
    }

    /// Fetches before this number are over; `None`: all are.
    pub(super) fn forget_sent(&mut self, oldest: Option<u64>) {
        match oldest {
            None => self.sent.clear(),
            Some(oldest) => self.sent.retain(|(asked, _)| *asked >= oldest),
        }
    }
}

/// Runs of bytes in which the two differ.
fn differences(new: &[u8], old: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let differs = |at: &usize| new.get(*at) != old.get(*at);
    let len = new.len().min(old.len());
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = (at..len).find(differs)?;
        let end = (start..len).find(|at| !differs(at)).unwrap_or(len);
        at = end;
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::{Grain, Mirror, PIECE};

    /// The writes that a fetch leads to.
    fn taken(mirror: &mut Mirror, number: u64, new: &[u8]) -> Vec<(usize, Vec<u8>)> {
        let mut writes = Vec::new();
        let taken = mirror.take(number, new, |at, bytes| {
            writes.push((at, bytes.to_vec()));
            Ok(())
        });
        assert_eq!(taken, Ok(()));
        writes
    }

    #[test]
    fn changes_are_pieces_or_the_very_bytes() {
        let mirror = Mirror::new(4 * PIECE + 10);
        let mut new = vec![0_u8; 4 * PIECE + 10];
        let of = |new: &[u8], grain| mirror.changes(new, grain, 9);
        assert_eq!(of(&new, Grain::Piece), Some(vec![]));
        new[PIECE] = 1;
        new[2 * PIECE - 1] = 1;
        new[2 * PIECE] = 1;
        new[4 * PIECE + 9] = 1;
        let pieces = vec![PIECE..3 * PIECE, 4 * PIECE..4 * PIECE + 10];
        assert_eq!(of(&new, Grain::Piece), Some(pieces));
        let bytes = vec![
            PIECE..PIECE + 1,
            2 * PIECE - 1..2 * PIECE + 1,
            4 * PIECE + 9..4 * PIECE + 10,
        ];
        assert_eq!(of(&new, Grain::Byte), Some(bytes));
        assert_eq!(mirror.changes(&new, Grain::Byte, 2), None);
    }

    #[test]
    fn what_the_device_changed_comes_and_nothing_else() {
        let mut mirror = Mirror::new(8);
        let host = [0, 0, 7, 0, 0, 0, 0, 0];
        assert_eq!(mirror.send(2..3, &host, None), [7]);
        let device = [1, 2, 7, 0, 0, 0, 0, 3];
        let writes = vec![(0, vec![1, 2]), (7, vec![3])];
        assert_eq!(taken(&mut mirror, 1, &device), writes);
        assert_eq!(taken(&mut mirror, 2, &device), vec![]);
    }

    #[test]
    fn a_fetch_does_not_take_back_what_was_sent_after_it_was_asked_for() {
        let mut mirror = Mirror::new(2 * PIECE);
        let mut host = vec![0; 2 * PIECE];
        (host[1], host[PIECE + 1]) = (7, 8);
        mirror.send(1..2, &host, Some(4));
        mirror.send(PIECE + 1..PIECE + 2, &host, Some(4));
        // Asked for before, and so without what was sent, but with what the device wrote beside it.
        let mut device = vec![0; 2 * PIECE];
        (device[0], device[PIECE + 2]) = (1, 2);
        let writes = vec![(0, vec![1]), (PIECE + 2, vec![2])];
        assert_eq!(taken(&mut mirror, 4, &device), writes);
        assert_eq!(
            mirror.changes(&host, Grain::Byte, 9),
            Some(vec![0..1, PIECE + 2..PIECE + 3])
        );
        // Asked for after that: the device has written over it.
        (device[1], device[PIECE + 1]) = (9, 8);
        assert_eq!(taken(&mut mirror, 5, &device), vec![(1, vec![9])]);
    }

    #[test]
    fn an_older_fetch_changes_nothing() {
        let mut mirror = Mirror::new(4);
        assert_eq!(taken(&mut mirror, 2, &[1, 0, 0, 0]), vec![(0, vec![1])]);
        assert_eq!(taken(&mut mirror, 1, &[0, 5, 0, 0]), vec![]);
        assert_eq!(mirror.changes(&[1, 0, 0, 0], Grain::Byte, 9), Some(vec![]));
    }

    #[test]
    fn what_was_sent_is_forgotten_with_the_last_fetch_before_it() {
        let mut mirror = Mirror::new(4);
        mirror.send(0..1, &[1, 1, 0, 0], Some(1));
        mirror.send(1..2, &[1, 1, 0, 0], Some(2));
        mirror.forget_sent(Some(2));
        assert_eq!(mirror.sent, [(2, 1..2)]);
        mirror.forget_sent(None);
        assert!(mirror.sent.is_empty());
    }
}
