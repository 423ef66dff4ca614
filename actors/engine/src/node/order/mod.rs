//! What is asked of a node and what it answers, how that is carried out, and how nodes move between iothreads.

pub mod carry_out;
pub mod commit;
pub mod late;
pub mod mail;
pub mod moving;
pub mod orders;
pub mod recorded;
