//! Cuts a stream of bytes into JSON tokens.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    OpenObject,
    CloseObject,
    OpenArray,
    CloseArray,
    Colon,
    Comma,
    Keyword,
    Integer,
    Float,
    String,
    /// Bytes that begin no token, or leave one unfinished.
    Error,
}

/// What the bytes so far are the beginning of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    /// Inside a string that ends with this quote.
    Text(u8),
    /// After a backslash in such a string.
    Escape(u8),
    Minus,
    /// After a leading zero, which no digit may follow.
    Zero,
    Digits,
    /// After the decimal point: a digit must follow.
    Point,
    Fraction,
    /// After `e`: a sign or a digit must follow.
    Exponent,
    /// After the exponent's sign: a digit must follow.
    ExponentSign,
    ExponentDigits,
    Keyword,
    /// After an error: skips what could belong to the broken value.
    Recovery,
}

/// What a byte did.
enum Step {
    /// It belongs to the token.
    Take(State),
    /// It belongs to the token and ends it.
    Finish(Kind),
    /// The token ended before it; it is looked at again.
    Before(Kind),
    /// It is no part of any token.
    Skip(State),
    /// It is looked at again in this state.
    Again(State),
}

/// The state between two bytes.
#[derive(Debug, Default)]
pub(super) struct Lexer {
    state: State,
}

impl Lexer {
    /// Looks at `byte`; tells what becomes of the bytes collected so far.
    pub fn feed(&mut self, byte: u8, mut take: impl FnMut(Taken)) {
        loop {
            match step(self.state, byte) {
                Step::Take(state) => {
                    self.state = state;
                    return take(Taken::Byte(byte));
                }
                Step::Finish(kind) => {
                    self.state = after(kind);
                    take(Taken::Byte(byte));
                    return take(Taken::Token(kind));
                }
                Step::Before(kind) => {
                    self.state = State::Start;
                    take(Taken::Token(kind));
                }
                Step::Skip(state) => {
                    self.state = state;
                    return;
                }
                Step::Again(state) => self.state = state,
            }
        }
    }

    /// The stream ended: gives the token that was being read, if any.
    pub fn finish(&mut self) -> Option<Kind> {
        match std::mem::take(&mut self.state) {
            State::Start | State::Recovery => None,
            State::Keyword => Some(Kind::Keyword),
            State::Zero | State::Digits => Some(Kind::Integer),
            State::Fraction | State::ExponentDigits => Some(Kind::Float),
            _ => Some(Kind::Error),
        }
    }

    /// Forgets the token being read.
    pub fn reset(&mut self) {
        self.state = State::Start;
    }
}

/// What the lexer tells about the bytes it is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// This byte belongs to the current token.
    Byte(u8),
    /// The current token is complete.
    Token(Kind),
}

fn after(kind: Kind) -> State {
    if kind == Kind::Error {
        State::Recovery
    } else {
        State::Start
    }
}

fn structural(byte: u8) -> Option<Kind> {
    Some(match byte {
        b'{' => Kind::OpenObject,
        b'}' => Kind::CloseObject,
        b'[' => Kind::OpenArray,
        b']' => Kind::CloseArray,
        b':' => Kind::Colon,
        b',' => Kind::Comma,
        _ => return None,
    })
}

fn step(state: State, byte: u8) -> Step {
    use State as S;
    match (state, byte) {
        (S::Start, _) => start(byte),
        (S::Recovery, b'\n' | b'\r') => Step::Skip(S::Start),
        (S::Recovery, b'\t') => Step::Skip(S::Recovery),
        (S::Recovery, 0..=0x1f | 0xfe | 0xff) => Step::Again(S::Start),
        (S::Recovery, _) if structural(byte).is_some() => Step::Again(S::Start),
        (S::Recovery, _) => Step::Skip(S::Recovery),
        (S::Text(_) | S::Escape(_), 0..=0x1f | 0xfe | 0xff) => Step::Finish(Kind::Error),
        (S::Text(quote), _) if byte == quote => Step::Finish(Kind::String),
        (S::Text(quote), b'\\') => Step::Take(S::Escape(quote)),
        (S::Text(quote) | S::Escape(quote), _) => Step::Take(S::Text(quote)),
        (S::Minus, b'0') => Step::Take(S::Zero),
        (S::Minus, b'1'..=b'9') | (S::Digits, b'0'..=b'9') => Step::Take(S::Digits),
        (S::Zero, b'0'..=b'9') => Step::Finish(Kind::Error),
        (S::Zero | S::Digits, b'.') => Step::Take(S::Point),
        (S::Zero | S::Digits | S::Fraction, b'e' | b'E') => Step::Take(S::Exponent),
        (S::Zero | S::Digits, _) => Step::Before(Kind::Integer),
        (S::Point | S::Fraction, b'0'..=b'9') => Step::Take(S::Fraction),
        (S::Exponent, b'+' | b'-') => Step::Take(S::ExponentSign),
        (S::Exponent | S::ExponentSign | S::ExponentDigits, b'0'..=b'9') => Step::Take(S::ExponentDigits),
        (S::Fraction | S::ExponentDigits, _) => Step::Before(Kind::Float),
        (S::Keyword, b'a'..=b'z') => Step::Take(S::Keyword),
        (S::Keyword, _) => Step::Before(Kind::Keyword),
        (S::Minus | S::Point | S::Exponent | S::ExponentSign, _) => Step::Finish(Kind::Error),
    }
}

fn start(byte: u8) -> Step {
    match byte {
        b' ' | b'\t' | b'\r' | b'\n' => Step::Skip(State::Start),
        b'"' | b'\'' => Step::Take(State::Text(byte)),
        b'-' => Step::Take(State::Minus),
        b'0' => Step::Take(State::Zero),
        b'1'..=b'9' => Step::Take(State::Digits),
        b'a'..=b'z' => Step::Take(State::Keyword),
        _ => Step::Finish(structural(byte).unwrap_or(Kind::Error)),
    }
}
