//! What a driver answers when it goes on with other data behind its children, and how that is taken back.

use super::image::BackingLink;

/// A driver that goes on with other data behind its children, and what takes that back.
#[derive(Default)]
#[must_use = "what was put aside is either dropped or put back"]
pub struct Exchanged {
    /// The backing file that the image there names.
    pub backing: Option<BackingLink>,
    put_back: Option<Box<dyn FnOnce()>>,
}

impl Exchanged {
    /// The answer of a driver that keeps nothing of what it reads from its children.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// The answer of a driver whose old state `put_back` restores without waiting for anything.
    pub fn with_old_state(put_back: impl FnOnce() + 'static) -> Self {
        Self {
            backing: None,
            put_back: Some(Box::new(put_back)),
        }
    }

    /// The same answer with the backing file that the image names now.
    pub fn naming(self, backing: Option<BackingLink>) -> Self {
        Self { backing, ..self }
    }

    /// The same answer, with `run` calling what restores the old state, so that a panic in it can be caught.
    pub(super) fn put_back_by(self, run: impl FnOnce(Box<dyn FnOnce()>) + 'static) -> Self {
        let Self { backing, put_back } = self;
        let put_back = put_back.map(|put_back| Box::new(move || run(put_back)) as Box<dyn FnOnce()>);
        Self { backing, put_back }
    }

    /// Restores the old state, because the old data is behind the children again.
    pub fn put_back(self) {
        if let Some(put_back) = self.put_back {
            put_back();
        }
    }
}

impl std::fmt::Debug for Exchanged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchanged")
            .field("backing", &self.backing)
            .finish_non_exhaustive()
    }
}
