//! What clients may come back to by a handle: so many, so long, and gone when they are not used.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of a handle.
const WIDTH: usize = 16;

type Handle = [u8; WIDTH];

/// Values by handle. The one that was not used for longest goes first.
pub(super) struct Kept<T> {
    most: usize,
    /// Of all that is kept, as those who keep say.
    most_bytes: usize,
    lasting: Duration,
    secret: [RandomState; 2],
    inside: Mutex<Inside<T>>,
}

struct Inside<T> {
    next: u64,
    bytes: usize,
    /// The one that was used last is at the end.
    entries: VecDeque<Entry<T>>,
}

struct Entry<T> {
    handle: Handle,
    used: Instant,
    bytes: usize,
    value: Arc<T>,
}

impl<T> Kept<T> {
    /// Keeps at most `most` values of `most_bytes` together, each until it was not used for `lasting`.
    pub(super) fn new(most: usize, most_bytes: usize, lasting: Duration) -> Self {
        Kept {
            most,
            most_bytes,
            lasting,
            secret: [RandomState::new(), RandomState::new()],
            inside: Mutex::new(Inside {
                next: 0,
                bytes: 0,
                entries: VecDeque::new(),
            }),
        }
    }

    /// Keeps a value; the handle says nothing about it.
    pub(super) fn keep(&self, value: T, bytes: usize) -> Vec<u8> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.next += 1;
        let mut handle = [0; WIDTH];
        for (part, secret) in handle.chunks_mut(8).zip(&self.secret) {
            part.copy_from_slice(&secret.hash_one(inside.next).to_le_bytes());
        }
        inside.bytes += bytes;
        inside.entries.push_back(Entry {
            handle,
            used: Instant::now(),
            bytes,
            value: Arc::new(value),
        });
        let mut gone = self.tidy(&mut inside);
        drop(inside);
        // Letting go of a plan takes a while.
        gone.clear();
        handle.to_vec()
    }

    /// The value of a handle, which counts as used.
    pub(super) fn find(&self, handle: &[u8]) -> Option<Arc<T>> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = self.tidy(&mut inside);
        let at = inside.entries.iter().position(|entry| entry.handle == handle);
        let found = at.and_then(|at| inside.entries.remove(at)).map(|mut entry| {
            entry.used = Instant::now();
            let value = entry.value.clone();
            inside.entries.push_back(entry);
            value
        });
        drop(inside);
        drop(gone);
        found
    }

    /// Keeps it no longer.
    pub(super) fn forget(&self, handle: &[u8]) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let at = inside.entries.iter().position(|entry| entry.handle == handle);
        let gone = at.and_then(|at| inside.entries.remove(at));
        inside.bytes -= gone.as_ref().map_or(0, |entry| entry.bytes);
    }

    /// Takes out what is too old or too much.
    fn tidy(&self, inside: &mut Inside<T>) -> Vec<Entry<T>> {
        let mut gone = Vec::new();
        while let Some(first) = inside.entries.front() {
            let many = inside.entries.len() > self.most || inside.bytes > self.most_bytes;
            if !many && first.used.elapsed() < self.lasting {
                break;
            }
            inside.bytes -= first.bytes;
            gone.extend(inside.entries.pop_front());
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays() {
        let kept = Kept::new(2, 100, Duration::from_secs(60));
        let (a, b) = (kept.keep("a", 1), kept.keep("b", 1));
        assert_eq!(kept.find(&a).as_deref(), Some(&"a"));
        let c = kept.keep("c", 1);
        assert_eq!(kept.find(&b), None);
        assert_eq!(kept.find(&a).as_deref(), Some(&"a"));
        kept.forget(&a);
        assert_eq!(kept.find(&a), None);
        assert_eq!(kept.find(&c).as_deref(), Some(&"c"));
        assert_eq!(kept.find(b"anything"), None);
    }

    #[test]
    fn much_goes_and_so_does_what_is_old() {
        let kept = Kept::new(100, 10, Duration::from_millis(20));
        let (a, b) = (kept.keep("a", 6), kept.keep("b", 6));
        assert_eq!(kept.find(&a), None);
        assert_eq!(kept.find(&b).as_deref(), Some(&"b"));
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(kept.find(&b), None);
        // Nothing is counted that is gone.
        let c = kept.keep("c", 10);
        assert_eq!(kept.find(&c).as_deref(), Some(&"c"));
    }
}
