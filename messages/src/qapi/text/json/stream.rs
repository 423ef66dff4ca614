//! Collects tokens until they form a value.

use super::lexer::{Kind, Lexer, Taken};
use super::parse::{lossy, parse};
use serde_json::Value;

/// How deep brackets may be nested in one value.
const DEEPEST: usize = 1024;
/// Bytes of tokens one value may have, about: it is checked at the end of each token.
const MOST_BYTES: usize = 64 << 20;
/// Tokens one value may have.
const MOST_TOKENS: usize = 2 << 20;

/// A token: its bytes are those of the buffer from the last token's end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub kind: Kind,
    pub end: usize,
}

/// A stream of JSON values. What is not yet a whole value is kept, within bounds.
#[derive(Debug, Default)]
pub struct JsonStream {
    lexer: Lexer,
    bytes: Vec<u8>,
    tokens: Vec<Token>,
    objects: isize,
    arrays: isize,
}

impl JsonStream {
    /// The values, or what was wrong, that `input` completes.
    pub fn feed(&mut self, input: &[u8]) -> Vec<Result<Value, String>> {
        let mut values = Vec::new();
        for &byte in input {
            // The lexer is moved out so that it can tell this about its tokens.
            let mut lexer = std::mem::take(&mut self.lexer);
            lexer.feed(byte, |taken| match taken {
                Taken::Byte(byte) => self.bytes.push(byte),
                Taken::Token(kind) => values.extend(self.token(kind)),
            });
            self.lexer = lexer;
            if self.bytes.len() > MOST_BYTES {
                self.lexer.reset();
                values.push(self.give_up("JSON token size limit exceeded"));
            }
        }
        values
    }

    /// The stream ended: what was left unfinished is an error.
    pub fn finish(&mut self) -> Option<Result<Value, String>> {
        let last = self.lexer.finish().and_then(|kind| self.token(kind));
        last.or_else(|| (!self.tokens.is_empty()).then(|| self.complete()))
    }

    fn token(&mut self, kind: Kind) -> Option<Result<Value, String>> {
        match kind {
            Kind::OpenObject => self.objects += 1,
            Kind::CloseObject => self.objects -= 1,
            Kind::OpenArray => self.arrays += 1,
            Kind::CloseArray => self.arrays -= 1,
            Kind::Error => {
                let start = self.tokens.last().map_or(0, |token| token.end);
                let stray = lossy(self.bytes.get(start..).unwrap_or_default());
                return Some(self.give_up(&format!("JSON parse error, stray '{stray}'")));
            }
            Kind::Colon | Kind::Comma | Kind::Keyword | Kind::Integer | Kind::Float | Kind::String => {}
        }
        self.tokens.push(Token {
            kind,
            end: self.bytes.len(),
        });
        if self.tokens.len() > MOST_TOKENS {
            return Some(self.give_up("JSON token count limit exceeded"));
        }
        if self.objects.saturating_add(self.arrays) > DEEPEST.cast_signed() {
            return Some(self.give_up("JSON nesting depth limit exceeded"));
        }
        let open = self.objects > 0 || self.arrays > 0;
        if open && self.objects >= 0 && self.arrays >= 0 {
            None
        } else {
            Some(self.complete())
        }
    }

    /// Makes a value of the tokens collected.
    fn complete(&mut self) -> Result<Value, String> {
        let value = parse(&self.bytes, &self.tokens).map_err(|why| format!("JSON parse error, {why}"));
        self.clear();
        value
    }

    fn give_up(&mut self, why: &str) -> Result<Value, String> {
        self.clear();
        Err(why.into())
    }

    fn clear(&mut self) {
        // A large value's memory is given back; that of a usual one is used again.
        self.bytes.clear();
        self.bytes.shrink_to(64 << 10);
        self.tokens.clear();
        self.tokens.shrink_to(4 << 10);
        (self.objects, self.arrays) = (0, 0);
    }
}
