//! Another image in the file's place: the one there was is brought up to date, the new one is read, and the old state is
//! kept until it is known that nobody goes back to it.

use std::rc::Rc;

use millpond_messages::Result;

use super::image::Qcow2;
use super::open::{backing_link, open_state};
use crate::api::Exchanged;

impl Qcow2 {
    /// Reads the image that is behind the file's edge now.
    pub(super) async fn exchange_image(self: Rc<Self>) -> Result<Exchanged> {
        let given = self.wanted();
        let mut state = open_state(&self.file, &self.ring, &given, self.encryption()).await?;
        self.check_same_kind(&state)?;
        let link = backing_link(&state.header);
        if let Some(prepared) = &mut *self.prepared.borrow_mut() {
            prepared.settings = state.settings;
        }
        state.notices = self.state.borrow().notices.clone();
        self.last.take();
        let old = self.state.replace(state);
        // The node goes on with the bitmaps that it has. What else is listed here is called in use before the first write.
        if let Err(error) = self.load_bitmaps(false).await {
            self.state.replace(old);
            return Err(error);
        }
        let exchanged = Exchanged::with_old_state(move || {
            self.last.take();
            self.state.replace(old);
        });
        Ok(exchanged.naming(link))
    }
}
