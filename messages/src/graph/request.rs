//! A request, what it is answered by, and the one macro that makes both.

use super::{GraphReply, GraphRequest};

/// A request to the graph actor, which knows what it is answered by.
pub trait Request: Into<GraphRequest> {
    /// What it is answered by. `C` is the handle that a root edge is used through.
    type Answer<C: Send + 'static>: Send + 'static;

    /// Its answer out of the policy's reply; `None` if that replies to another request.
    #[doc(hidden)]
    fn answer<C: Send + 'static>(reply: GraphReply<C>) -> Option<Self::Answer<C>>;
}

/// The requests of one queue: each row is a struct, which its users ask with, and a variant of the queue's enum, which the policy
/// takes.
///
/// What stands behind the arrow is the answer, and the reply of the policy that has it. Without an arrow the answer is `()`, and
/// the reply [`GraphReply::Done`].
macro_rules! requests {
    (
        $(#[$outer:meta])*
        $queue:ident {
            $(
                $(#[$doc:meta])*
                $name:ident
                $({ $($(#[$field_doc:meta])* $field:ident: $kind:ty),+ $(,)? })?
                $(($whole:ty))?
                $(-> $answer:ty: $reply:ident)?
            ),+ $(,)?
        }
    ) => {
        $(#[$outer])*
        #[derive(Debug, Clone)]
        pub enum $queue {
            $(
                #[doc = concat!("See [`", stringify!($name), "`] for what it is and may fail by.")]
                $name($name)
            ),+
        }

        impl From<$queue> for $crate::graph::GraphRequest {
            fn from(request: $queue) -> Self {
                Self::$queue(request)
            }
        }

        $(
            requests! { @type
                $(#[$doc])*
                $name $({ $($(#[$field_doc])* $field: $kind),+ })? $(($whole))?
            }

            impl From<$name> for $queue {
                fn from(request: $name) -> Self {
                    Self::$name(request)
                }
            }

            impl From<$name> for $crate::graph::GraphRequest {
                fn from(request: $name) -> Self {
                    Self::$queue(request.into())
                }
            }

            impl $crate::graph::Request for $name {
                requests! { @answer $($answer: $reply)? }
            }
        )+
    };

    (@type $(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
    };
    (@type $(#[$doc:meta])* $name:ident ($whole:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name(pub $whole);
    };
    (@type
        $(#[$doc:meta])*
        $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty),+ }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind),+
        }
    };

    (@answer) => {
        type Answer<C: Send + 'static> = ();

        fn answer<C: Send + 'static>(reply: $crate::graph::GraphReply<C>) -> Option<()> {
            matches!(reply, $crate::graph::GraphReply::Done).then_some(())
        }
    };
    (@answer $answer:ty: $reply:ident) => {
        type Answer<C: Send + 'static> = $answer;

        fn answer<C: Send + 'static>(reply: $crate::graph::GraphReply<C>) -> Option<$answer> {
            match reply {
                $crate::graph::GraphReply::$reply(answer) => Some(answer),
                _ => None,
            }
        }
    };
}
