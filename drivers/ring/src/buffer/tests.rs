//! Free of system calls and of large loops, so that miri can run them.

use super::*;
use std::sync::atomic::AtomicBool;

#[test]
fn memory_is_aligned_and_zeroed_buffers_are_zero_even_when_reused() {
    for len in [1, 511, 512, 513, 4095, 4096, 5000, 70_000] {
        for _ in 0..3 {
            let mut buffer = Buffer::zeroed(len);
            assert_eq!(buffer.len(), len);
            let align = if len >= OPT_MEM_ALIGN {
                OPT_MEM_ALIGN
            } else {
                MIN_MEM_ALIGN
            };
            assert_eq!(buffer.as_ptr().addr() % align, 0);
            assert_eq!(buffer.is_aligned(MIN_MEM_ALIGN), len % MIN_MEM_ALIGN == 0);
            assert!(is_zero(&buffer));
            buffer.fill(0xa5);
        }
    }
}

#[test]
fn memory_is_as_aligned_as_a_node_needs_it() {
    for align in [1, 512, 1024, 4096, 8192, 65_536] {
        for len in [0, 1, 512, 4095, 4096, 10_000] {
            let buffer = Buffer::try_aligned(len, align).unwrap();
            assert_eq!(buffer.len(), len);
            assert!(
                len == 0 || buffer.as_ptr().addr().is_multiple_of(align),
                "{len} at {align}"
            );
        }
    }
    assert_eq!(Buffer::try_aligned(usize::MAX, 65_536), None);
}

#[test]
fn a_list_is_aligned_if_each_of_its_buffers_is_in_address_and_length() {
    let aligned = || Buffer::alloc(1024);
    let list = |buffers: Vec<Buffer>| {
        let mut list = Buffers::new();
        buffers.into_iter().for_each(|buffer| list.append(buffer.into()));
        list
    };
    assert!(Buffers::new().is_aligned(512));
    assert!(list(vec![aligned(), aligned()]).is_aligned(512));
    let shifted = |by| {
        let mut whole = Buffer::alloc(1024 + 512);
        let mut shifted = whole.split_off(by);
        shifted.truncate(512);
        shifted
    };
    assert!(list(vec![aligned(), shifted(512)]).is_aligned(512));
    assert!(!list(vec![aligned(), shifted(8)]).is_aligned(512), "an address");
    assert!(list(vec![aligned(), shifted(8)]).is_aligned(8));
    let mut short = aligned();
    short.truncate(100);
    assert!(!list(vec![short, aligned()]).is_aligned(512), "a length");
}

#[test]
fn a_dropped_buffer_s_memory_is_the_next_one_s() {
    let buffer = Buffer::alloc(6000);
    let address = buffer.as_ptr();
    drop(buffer);
    assert_eq!(
        Buffer::alloc(8000).as_ptr(),
        address,
        "both are of the class of 8 KiB"
    );
}

#[test]
fn impossible_lengths_are_refused() {
    assert_eq!(Buffer::try_alloc(usize::MAX), None);
    assert_eq!(Buffer::try_alloc(usize::MAX / 2), None);
    assert_eq!(Buffer::try_alloc(0), Some(Buffer::new()));
    assert_eq!(Buffer::try_zeroed(usize::MAX), None);
    assert_eq!(Buffer::try_zeroed(usize::MAX / 2), None);
    assert_eq!(Buffer::try_zeroed(0), Some(Buffer::new()));
    Buffer::alloc(600).fill(0xa5);
    let zeroed = Buffer::try_zeroed(600).unwrap();
    assert!(
        is_zero(&zeroed) && zeroed.len() == 600,
        "also where the memory was used before"
    );
}

#[test]
fn halves_are_disjoint_and_join_again() {
    let mut head = Buffer::from_slice(b"headtail");
    let mut tail = head.split_off(4);
    tail.copy_from_slice(b"TAIL");
    assert_eq!((&*head, &*tail), (&b"head"[..], &b"TAIL"[..]));
    head.copy_from_slice(b"HEAD");
    let (tail, head) = tail.try_unsplit(head).unwrap_err();
    let whole = head.try_unsplit(tail).unwrap();
    assert_eq!(&*whole, b"HEADTAIL");

    let mut rest = whole;
    let first = rest.split_to(3);
    let second = rest.split_to(2);
    drop(second);
    assert_eq!((&*first, &*rest), (&b"HEA"[..], &b"AIL"[..]));
    assert!(first.try_unsplit(rest).is_err(), "there is a gap");
}

#[test]
fn strangers_do_not_join() {
    let (a, b) = (Buffer::from_slice(b"a"), Buffer::from_slice(b"b"));
    assert!(a.try_unsplit(b).is_err());
}

#[test]
fn halves_may_end_on_different_threads() {
    for _ in 0..20 {
        let mut buffer = Buffer::from_slice(&[7; 1024]);
        let half = buffer.split_off(512);
        let thread = std::thread::spawn(move || {
            let mut half = half;
            half.fill(8);
            half
        });
        buffer.fill(9);
        drop(buffer);
        assert_eq!(*thread.join().unwrap(), [8; 512]);
    }
}

#[test]
fn vectors_are_taken_over_and_given_back() {
    let mut bytes = Vec::with_capacity(100);
    bytes.extend_from_slice(b"vector");
    let address = bytes.as_ptr();
    let mut buffer = Buffer::from(bytes);
    assert_eq!(buffer.as_ptr(), address);
    buffer.truncate(3);
    buffer.truncate(10);
    assert_eq!(&*buffer, b"vec");
    assert!(Buffer::from(Vec::new()).is_empty());
}

struct Owner {
    // Not a box: moving one claims its memory for itself, and pointers into it are void.
    memory: Vec<u8>,
    gone: Arc<AtomicBool>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        assert_eq!(self.memory.len(), 16);
        self.gone.store(true, Ordering::Relaxed);
    }
}

#[test]
fn foreign_memory_keeps_its_owner_until_the_last_handle() {
    let gone = Arc::new(AtomicBool::new(false));
    let mut memory = vec![0; 16];
    let ptr = NonNull::new(memory.as_mut_ptr()).unwrap();
    let owner = Arc::new(Owner {
        memory,
        gone: gone.clone(),
    });
    // SAFETY: the owner keeps the memory, and nothing else uses it.
    let mut buffer = unsafe { Buffer::foreign(ptr, 16, owner) };
    buffer.fill(1);
    let half = buffer.split_to(8);
    drop(buffer);
    assert_eq!(*half, [1; 8]);
    assert!(!gone.load(Ordering::Relaxed));
    drop(half);
    assert!(gone.load(Ordering::Relaxed));
}

fn list(parts: &[&[u8]]) -> Buffers {
    parts.iter().map(|part| Buffer::from_slice(part)).collect()
}

#[test]
fn lists_split_anywhere() {
    for n in 0..=8 {
        let mut rest = list(&[b"ab", b"", b"cde", b"fgh"]);
        let first = rest.split_to(n);
        assert_eq!((first.len(), rest.len()), (n, 8 - n));
        assert_eq!([first.to_vec(), rest.to_vec()].concat(), b"abcdefgh");
        let mut joined = first;
        joined.append(rest);
        assert_eq!(&*joined.into_single(), b"abcdefgh");
    }
    let mut list = list(&[b"ab", b"cd"]);
    list.truncate(3);
    list.truncate(9);
    assert_eq!(list.to_vec(), b"abc");
}

#[test]
#[should_panic(expected = "too short to split")]
fn lists_do_not_split_past_their_end() {
    list(&[b"ab"]).split_to(3);
}

#[test]
fn lists_copy_and_fill_across_members() {
    let mut list = list(&[b"abc", b"def", b"gh"]);
    assert_eq!(list.copy_from_slice(2, b"CDEFG"), 5);
    assert_eq!(list.to_vec(), b"abCDEFGh");
    assert_eq!(list.copy_from_slice(7, b"xyz"), 1, "as far as the list reaches");
    let mut out = [0; 4];
    assert_eq!(list.copy_to_slice(1, &mut out), 4);
    assert_eq!(&out, b"bCDE");
    assert_eq!(list.copy_to_slice(6, &mut out), 2);
    assert_eq!(list.copy_to_slice(9, &mut out), 0);
    list.fill_zero(1..7);
    assert_eq!(list.to_vec(), b"a\0\0\0\0\0\0x");
    list.fill_zero(0..usize::MAX);
    assert!(list.is_zero());
}

#[test]
fn a_list_of_one_is_not_copied() {
    let buffer = Buffer::from_slice(b"one");
    let address = buffer.as_ptr();
    assert_eq!(Buffers::from(buffer).into_single().as_ptr(), address);
    assert!(Buffers::new().into_single().is_empty());
}

#[test]
fn a_single_byte_anywhere_is_not_zero() {
    for len in [0, 1, 7, 255, 256, 257, 600] {
        let mut bytes = vec![0; len];
        assert!(is_zero(&bytes));
        for i in 0..len {
            bytes[i] = 1;
            assert!(!is_zero(&bytes), "byte {i} of {len}");
            bytes[i] = 0;
        }
    }
}
