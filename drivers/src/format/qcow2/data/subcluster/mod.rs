//! Clusters of 32 subclusters, of which each holds data, reads as zeroes, or shows the backing file. What is asked of the
//! guest's data comes here where an image has them: the entries differ, the rest of the image does not.

pub(crate) mod locate;
pub(crate) mod place;
mod zero_discard;
