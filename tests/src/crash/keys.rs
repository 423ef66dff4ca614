//! The passwords of an encrypted image, as its user was told of them: which must open what a crash leaves, and which must not.

use std::sync::{Mutex, MutexGuard, PoisonError};

use millpond_messages::Error;
use millpond_messages::graph::Amend;
use serde_json::{Value, json};

use super::kept::Span;
use super::link::Format;
use super::site::{Run, options};

/// The ids of the secrets that there are; each is its own password.
pub const KEYS: [&str; 4] = ["key0", "key1", "key2", "key3"];

/// The secret that images are made with, in the first place for keys.
pub const FIRST: &str = KEYS[0];

/// Where a header has its places for keys, and how one says that it has one.
const PLACES: usize = 208;
const PLACE_LEN: usize = 48;
const USED: u32 = 0x00ac_71f3;

/// What is done to the keys of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    /// A password gets a place.
    Put(u32, &'static str),
    /// The place of the first password is forced to have the second.
    Replace(u32, &'static str, &'static str),
    /// All places of a password become free.
    Erase(&'static str),
}

/// What a password does with an image that a crash has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opens {
    /// It opens the image.
    Must,
    /// It was being put in or erased.
    May,
    /// It is erased, or was never put in.
    Never,
}

/// A password was put in or erased.
#[derive(Debug, Clone, Copy)]
struct Event {
    key: &'static str,
    is_put: bool,
    /// It takes the place of another, and may have one of its own meanwhile.
    replaces: bool,
    span: Span,
}

/// The passwords of an image, in the order in which they were changed.
#[derive(Debug, Default)]
pub struct Keys(Mutex<Vec<Event>>);

impl Keys {
    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first password was put in.
    pub fn begin(&self) {
        let span = Span {
            began: 0,
            done: Some(0),
        };
        self.change(KeyChange::Put(0, FIRST), span);
    }

    /// A change was asked for, and was made or may have been.
    pub fn change(&self, change: KeyChange, span: Span) {
        let (put, erased) = change.keys();
        let event = |key, is_put| Event {
            key,
            is_put,
            replaces: is_put && erased.is_some(),
            span,
        };
        let mut events = self.events();
        events.extend(put.map(|key| event(key, true)));
        events.extend(erased.map(|key| event(key, false)));
    }

    /// How many places a header has at `point` that have a key, where `opened` passwords open it: none has half a key.
    pub fn check_places(&self, point: u64, header: &[u8], opened: usize) -> Result<(), String> {
        let events = self.events();
        let is_over = |event: &Event| {
            (events.iter()).any(|end| end.span.began == event.span.began && end.span.is_done(point))
        };
        let under_way = |event: &&Event| event.replaces && event.span.may_be_done(point) && !is_over(event);
        let most = opened + usize::from(events.iter().any(|event| under_way(&event)));
        let used = header.get(PLACES..).unwrap_or_default().chunks(PLACE_LEN).take(8);
        let used = used
            .filter(|place| place.starts_with(&USED.to_be_bytes()))
            .count();
        match used > most {
            true => Err(format!(
                "{opened} passwords open it, and {used} places have a key"
            )),
            false => Ok(()),
        }
    }

    /// What each password does at `point`, those first that must open the image; nothing where it is not encrypted.
    pub fn at(&self, point: u64) -> Vec<(&'static str, Opens)> {
        let events = self.events();
        if events.is_empty() {
            return Vec::new();
        }
        let state = |key: &&'static str| {
            let began = |event: &&Event| event.key == *key && event.span.began <= point;
            let changed = |state, event: &Event| match (event.span.is_done(point), event.is_put) {
                (true, true) => Opens::Must,
                (true, false) => Opens::Never,
                (false, true) if state == Opens::Must => Opens::Must,
                (false, false) if state == Opens::Never => Opens::Never,
                (false, _) => Opens::May,
            };
            (*key, events.iter().filter(began).fold(Opens::Never, changed))
        };
        let mut all: Vec<_> = KEYS.iter().map(state).collect();
        all.sort_by_key(|(_, opens)| *opens as u8);
        all
    }

    /// The passwords that may open the image at `point`, the likeliest first; none in its stead where it is not encrypted.
    pub fn usable(&self, point: u64) -> Vec<Option<&'static str>> {
        let all = self.at(point);
        let some = all.iter().filter(|(_, opens)| *opens != Opens::Never);
        match all.is_empty() {
            true => vec![None],
            false => some.map(|(key, _)| Some(*key)).collect(),
        }
    }
}

impl KeyChange {
    /// What it puts in and what it erases.
    const fn keys(self) -> (Option<&'static str>, Option<&'static str>) {
        match self {
            Self::Put(_, new) => (Some(new), None),
            Self::Replace(_, old, new) => (Some(new), Some(old)),
            Self::Erase(old) => (None, Some(old)),
        }
    }

    /// The options that ask for it. `known` is a password that opens the image.
    fn options(self, known: &str) -> Value {
        match self {
            Self::Put(slot, new) | Self::Replace(slot, _, new) => json!({
                "state": "active", "keyslot": slot, "new-secret": new, "iter-time": 1, "secret": known
            }),
            Self::Erase(old) => json!({"state": "inactive", "old-secret": old}),
        }
    }
}

/// Whether an error says that a password opens nothing.
pub(super) fn is_wrong_password(text: &str) -> bool {
    text.contains("Invalid password")
}

impl Run<'_> {
    /// Changes the keys. Who tries again after a failure says so, since the change may have been made.
    pub(super) async fn change_keys(&mut self, change: KeyChange, is_retry: bool) {
        let began = self.history.now();
        let told = |done| self.history.keys.change(change, Span { began, done });
        let known = self.history.keys.usable(began);
        // What is changed may be either from now on.
        told(None);
        let mut changed = Ok(());
        for known in known.into_iter().flatten() {
            let request = Amend {
                node_name: self.node.clone(),
                options: options(self.key_options(change.options(known))),
                // Erasing is never forced: where others could not be put in, the last password stays.
                force: match change {
                    KeyChange::Put(..) => is_retry,
                    KeyChange::Replace(..) => true,
                    KeyChange::Erase(_) => false,
                },
            };
            changed = self.site.graph().ask(request).await;
            let is_wrong = |error: &Error| is_wrong_password(&error.to_string());
            if !changed.as_ref().is_err_and(is_wrong) {
                break;
            }
        }
        let is_gone = |error: &Error| error.to_string().contains("No keyslots match");
        if is_retry && changed.as_ref().is_err_and(is_gone) {
            // It was erased before the failure, durably or not.
            return;
        }
        if self.note(format!("{change:?}"), changed).is_some() {
            told(Some(self.history.now()));
        }
    }

    /// Options about keys as the image's format has them.
    fn key_options(&self, mut wanted: Value) -> Value {
        if self
            .links()
            .last()
            .is_some_and(|link| link.format == Format::Luks)
        {
            return wanted;
        }
        wanted["format"] = json!("luks");
        json!({ "encrypt": wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_may_open_an_image_while_it_is_changed() {
        let keys = Keys::default();
        let span = |began, done| Span { began, done };
        keys.begin();
        keys.change(KeyChange::Put(1, "key1"), span(10, None));
        keys.change(KeyChange::Put(1, "key1"), span(10, Some(20)));
        keys.change(KeyChange::Erase("key0"), span(30, Some(40)));
        let at = |point| {
            let all = keys.at(point);
            let of = |key| all.iter().find(|(id, _)| *id == key).unwrap().1;
            (of("key0"), of("key1"))
        };
        assert_eq!(at(5), (Opens::Must, Opens::Never));
        assert_eq!(at(15), (Opens::Must, Opens::May));
        assert_eq!(at(25), (Opens::Must, Opens::Must));
        assert_eq!(at(35), (Opens::May, Opens::Must));
        assert_eq!(at(40), (Opens::Never, Opens::Must));
        assert_eq!(keys.usable(35), [Some("key1"), Some("key0")]);
    }
}
