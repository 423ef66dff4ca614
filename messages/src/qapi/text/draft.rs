//! Text of JSON whose objects are put in order once they are complete.
//!
//! The members of an object are noted down as they come. What is drafted is written out when the outermost object ends, each
//! byte once: however deep objects nest, the work grows as the text does.

use super::order::bucket;
use std::mem::take;

/// Text that is being written.
#[derive(Debug, Default)]
pub struct Draft {
    /// What is in order.
    done: String,
    /// What is not: members one after the other, as they came.
    draft: String,
    /// The objects of the draft, as they begin.
    objects: Vec<Object>,
    /// The members of the objects that have ended, those of each together and in order.
    members: Vec<Member>,
    /// The members, so far, of the objects that have not ended.
    open_members: Vec<Member>,
    /// The objects that have not ended.
    open: Vec<Open>,
    buckets: Buckets,
}

/// An object of the draft.
#[derive(Debug, Clone, Copy, Default)]
struct Object {
    /// Where its members are in the draft.
    start: usize,
    end: usize,
    /// Its members in `members`.
    first_member: usize,
    end_members: usize,
    /// Behind the objects within it.
    end_objects: usize,
}

/// A member, its name included.
#[derive(Debug, Clone, Copy)]
struct Member {
    bucket: u32,
    /// Where it is in the draft.
    start: usize,
    end: usize,
    /// The objects within it.
    first_object: usize,
    end_objects: usize,
}

/// An object that has not ended.
#[derive(Debug)]
struct Open {
    object: usize,
    /// Its first member in `open_members`.
    first_member: usize,
}

impl Draft {
    /// Adds text as it is.
    pub fn push(&mut self, text: &str) {
        self.draft.push_str(text);
    }

    /// Adds a string, in quotation marks.
    pub fn push_string(&mut self, text: &str) {
        push_string(&mut self.draft, text);
    }

    /// Begins an object, without members.
    pub fn begin_object(&mut self) {
        self.open.push(Open {
            object: self.objects.len(),
            first_member: self.open_members.len(),
        });
        self.objects.push(Object {
            start: self.draft.len(),
            ..Object::default()
        });
    }

    /// Begins a member of the object that began last and has not ended. Its value follows.
    pub fn begin_member(&mut self, bucket: u32, name: &str) {
        self.open_members.push(Member {
            bucket,
            start: self.draft.len(),
            end: 0,
            first_object: self.objects.len(),
            end_objects: 0,
        });
        push_string(&mut self.draft, name);
        self.draft.push_str(": ");
    }

    /// Ends the member that began last and has not ended.
    pub fn end_member(&mut self) {
        if let Some(member) = self.open_members.last_mut() {
            member.end = self.draft.len();
            member.end_objects = self.objects.len();
        }
    }

    /// Ends the object that began last and has not ended.
    pub fn end_object(&mut self) {
        let Some(Open { object, first_member }) = self.open.pop() else {
            return;
        };
        let first = self.members.len();
        // Of those in one bucket, the newest is first.
        self.members.extend(self.open_members.drain(first_member..).rev());
        if let Some(members) = self.members.get_mut(first..) {
            members.sort_by_key(|member| member.bucket);
        }
        let (end_members, end_objects) = (self.members.len(), self.objects.len());
        if let Some(object) = self.objects.get_mut(object) {
            *object = Object {
                end: self.draft.len(),
                first_member: first,
                end_members,
                end_objects,
                ..*object
            };
        }
        if self.open.is_empty() {
            self.write_out();
        }
    }

    /// All of the text, in order.
    pub fn finish(mut self) -> String {
        self.write_out();
        self.done
    }

    /// The bucket of a member whose name is part of the program.
    pub fn bucket(&mut self, name: &'static str) -> u32 {
        self.buckets.of(name)
    }

    /// The bucket of any member.
    pub fn bucket_of(name: &str) -> u32 {
        bucket(name)
    }

    fn write_out(&mut self) {
        let mut done = take(&mut self.done);
        self.copy(&mut done, 0, self.draft.len(), 0..self.objects.len());
        self.done = done;
        self.draft.clear();
        self.objects.clear();
        self.members.clear();
    }

    /// Copies a part of the draft, the objects within it in order.
    fn copy(&self, out: &mut String, start: usize, end: usize, objects: std::ops::Range<usize>) {
        let (mut at, mut next) = (start, objects.start);
        while next < objects.end
            && let Some(object) = self.objects.get(next)
        {
            out.push_str(self.draft.get(at..object.start).unwrap_or_default());
            out.push('{');
            let members = self.members.get(object.first_member..object.end_members);
            for (index, member) in members.unwrap_or_default().iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                self.copy(
                    out,
                    member.start,
                    member.end,
                    member.first_object..member.end_objects,
                );
            }
            out.push('}');
            (at, next) = (object.end, object.end_objects);
        }
        out.push_str(self.draft.get(at..end).unwrap_or_default());
    }
}

/// Buckets that were worked out before, found by where the name is.
#[derive(Debug)]
struct Buckets([(&'static str, u32); KEPT]);

/// More than most answers have different names.
const KEPT: usize = 64;

impl Default for Buckets {
    fn default() -> Self {
        Self([("", 0); KEPT])
    }
}

impl Buckets {
    fn of(&mut self, name: &'static str) -> u32 {
        let place = name.as_ptr().addr() % KEPT;
        let Some(kept) = self.0.get_mut(place) else {
            return bucket(name);
        };
        if !std::ptr::eq(kept.0, name) {
            *kept = (name, bucket(name));
        }
        kept.1
    }
}

/// Adds `text` to `out` as a string of JSON, in quotation marks and escaped as QEMU does.
pub fn push_string(out: &mut String, text: &str) {
    out.push('"');
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        out.push_str(text);
    } else {
        write_escaped(out, text);
    }
    out.push('"');
}

fn write_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04X}"));
                }
            }
        }
    }
}
