//! What a driver answers once the data behind its children is other data.

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
    /// By a driver that keeps nothing of what it reads from its children.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// By a driver whose old state `put_back` puts back, without waiting for anything.
    pub fn with_old_state(put_back: impl FnOnce() + 'static) -> Self {
        Self {
            backing: None,
            put_back: Some(Box::new(put_back)),
        }
    }

    /// The same with the backing file that the image names now.
    pub fn naming(self, backing: Option<BackingLink>) -> Self {
        Self { backing, ..self }
    }

    /// The same, with the old state put back by whoever watches over the driver.
    pub(super) fn put_back_by(self, run: impl FnOnce(Box<dyn FnOnce()>) + 'static) -> Self {
        let Self { backing, put_back } = self;
        let put_back = put_back.map(|put_back| Box::new(move || run(put_back)) as Box<dyn FnOnce()>);
        Self { backing, put_back }
    }

    /// The old data is there again: the driver goes on as before.
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
