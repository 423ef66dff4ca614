//! GnuTLS's priority strings, by which users choose protocols and ciphers, as lists for OpenSSL.
//!
//! `NORMAL:-VERS-TLS1.2:+PSK` begins with a set, which the words behind it add to (`+`) and take from (`-`, `!`). What
//! cannot be carried over is refused: a cipher that somebody wanted gone must not stay by a misunderstanding.

use millpond_messages::{Error, ErrorKind, Result};
use openssl::ssl::SslVersion;

/// How the two sides know each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    Certificate,
    Key,
    Nothing,
}

/// Key exchanges: GnuTLS's word, what they need, OpenSSL's words.
const EXCHANGES: &[(&str, Proof, &str)] = &[
    ("ECDHE-ECDSA", Proof::Certificate, "kECDHE+aECDSA"),
    ("ECDHE-RSA", Proof::Certificate, "kECDHE+aRSA"),
    ("RSA", Proof::Certificate, "kRSA+aRSA"),
    ("DHE-RSA", Proof::Certificate, "kDHE+aRSA"),
    ("ECDHE-PSK", Proof::Key, "kECDHEPSK"),
    ("DHE-PSK", Proof::Key, "kDHEPSK"),
    ("PSK", Proof::Key, "kPSK"),
    ("ANON-ECDH", Proof::Nothing, "kECDHE+aNULL"),
    ("ANON-DH", Proof::Nothing, "kDHE+aNULL"),
];

/// Ciphers that authenticate by themselves: GnuTLS's word, OpenSSL's words, the suite of TLS 1.3.
const AEADS: &[(&str, &str, &str)] = &[
    ("AES-256-GCM", "AES256+AESGCM", "TLS_AES_256_GCM_SHA384"),
    ("CHACHA20-POLY1305", "CHACHA20", "TLS_CHACHA20_POLY1305_SHA256"),
    ("AES-256-CCM", "AES256+AESCCM", ""),
    ("AES-128-GCM", "AES128+AESGCM", "TLS_AES_128_GCM_SHA256"),
    ("AES-128-CCM", "AES128+AESCCM", "TLS_AES_128_CCM_SHA256"),
];

/// Ciphers that need a digest, and digests, which TLS 1.2 alone has.
const BLOCKS: &[(&str, &str)] = &[("AES-256-CBC", "AES256"), ("AES-128-CBC", "AES128")];
const DIGESTS: &[(&str, &str)] = &[("SHA384", "SHA384"), ("SHA256", "SHA256"), ("SHA1", "SHA1")];
/// The word for the digest of ciphers that need none.
const AEAD: &str = "AEAD";

/// Groups for the exchange of keys.
const GROUPS: &[(&str, &str)] = &[
    ("GROUP-X25519", "X25519"),
    ("GROUP-SECP256R1", "P-256"),
    ("GROUP-X448", "X448"),
    ("GROUP-SECP521R1", "P-521"),
    ("GROUP-SECP384R1", "P-384"),
    ("GROUP-FFDHE2048", "ffdhe2048"),
    ("GROUP-FFDHE3072", "ffdhe3072"),
    ("GROUP-FFDHE4096", "ffdhe4096"),
    ("GROUP-FFDHE6144", "ffdhe6144"),
    ("GROUP-FFDHE8192", "ffdhe8192"),
];

const TLS_1_2: &str = "VERS-TLS1.2";
const TLS_1_3: &str = "VERS-TLS1.3";

/// What is never used here: taking it away changes nothing.
const NEVER: &[&str] = &[
    "3DES-CBC",
    "ARCFOUR-128",
    "CAMELLIA-128-CBC",
    "CAMELLIA-128-GCM",
    "CAMELLIA-256-CBC",
    "CAMELLIA-256-GCM",
    "COMP-DEFLATE",
    "DHE-DSS",
    "MD5",
    "RSA-PSK",
    "SIGN-DSA-SHA1",
    "SIGN-ECDSA-SHA1",
    "SIGN-RSA-MD5",
    "SIGN-RSA-SHA1",
    "SRP",
    "SRP-DSS",
    "SRP-RSA",
    "VERS-DTLS-ALL",
    "VERS-SSL3.0",
    "VERS-TLS1.0",
    "VERS-TLS1.1",
];

/// What is always so: asking for it changes nothing.
const ALWAYS: &[&str] = &[
    "COMP-ALL",
    "COMP-NULL",
    "CTYPE-ALL",
    "CTYPE-X.509",
    "CTYPE-X509",
    "SIGN-ALL",
    "VERS-DTLS-ALL",
];
const FLAGS: &[&str] = &[
    "%COMPAT",
    "%NO_TICKETS",
    "%SAFE_RENEGOTIATION",
    "%SERVER_PRECEDENCE",
];

/// What a session may use, as OpenSSL is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Priority {
    pub(super) lowest: SslVersion,
    pub(super) highest: SslVersion,
    /// For TLS 1.2; empty if there are none.
    pub(super) ciphers: String,
    /// For TLS 1.3; empty if there are none.
    pub(super) suites: String,
    pub(super) groups: String,
}

/// The words that are in force.
struct Chosen(Vec<&'static str>);

impl Priority {
    /// What `text` says for sessions with this proof; GnuTLS's default if there is none.
    ///
    /// # Errors
    /// There is a word in it that is not known, or nothing is left.
    pub(super) fn parse(text: Option<&str>, proof: Proof) -> Result<Self> {
        let given = text.unwrap_or("NORMAL");
        let refused = |why: String| {
            let text = format!("Cannot set TLS session priority {given}: {why}");
            Error::new(ErrorKind::InvalidArgument, text)
        };
        let mut words = given.split(':');
        let mut chosen = Chosen::begin(words.next().unwrap_or_default()).map_err(refused)?;
        for word in words.filter(|word| !word.is_empty()) {
            chosen.change(word).map_err(refused)?;
        }
        // What QEMU adds to whatever its users say.
        let added: &[&str] = match proof {
            Proof::Certificate => &[],
            Proof::Key => &["ECDHE-PSK", "DHE-PSK", "PSK"],
            Proof::Nothing => &["ANON-DH"],
        };
        added.iter().for_each(|word| chosen.add(word));
        chosen.for_openssl(proof).map_err(refused)
    }
}

fn all() -> impl Iterator<Item = &'static str> {
    let exchanges = EXCHANGES.iter().map(|(word, ..)| *word);
    let aeads = AEADS.iter().map(|(word, ..)| *word);
    let pairs = [BLOCKS, DIGESTS, GROUPS]
        .into_iter()
        .flatten()
        .map(|(word, _)| *word);
    exchanges
        .chain(aeads)
        .chain(pairs)
        .chain([AEAD, TLS_1_2, TLS_1_3])
}

impl Chosen {
    /// The words of a set.
    fn begin(set: &str) -> Result<Self, String> {
        let without: &[&str] = match set {
            "NONE" => return Ok(Self(Vec::new())),
            "NORMAL" | "SYSTEM" | "PERFORMANCE" => &[],
            "PFS" => &["RSA"],
            "SECURE128" => &["SHA1"],
            "SECURE192" | "SECURE256" => &[
                "SHA1",
                "AES-128-GCM",
                "AES-128-CCM",
                "AES-128-CBC",
                "GROUP-SECP256R1",
                "GROUP-X25519",
            ],
            // A word of the system's configuration, which stands for such a set.
            _ if set.starts_with('@') => &[],
            _ => return Err(format!("'{set}' is not supported")),
        };
        let of_proofs = |word: &&str| {
            let exchange = EXCHANGES.iter().find(|(known, ..)| known == word);
            exchange.is_none_or(|(_, proof, _)| *proof == Proof::Certificate)
        };
        let words = all().filter(of_proofs).filter(|word| !without.contains(word));
        Ok(Self(words.collect()))
    }

    fn add(&mut self, word: &'static str) {
        if !self.0.contains(&word) {
            self.0.push(word);
        }
    }

    fn change(&mut self, word: &str) -> Result<(), String> {
        if FLAGS.contains(&word) {
            return Ok(());
        }
        let refused = || format!("'{word}' is not supported");
        if let Some(added) = word.strip_prefix('+') {
            if ALWAYS.contains(&added) {
                return Ok(());
            }
            let meant = meant_by(added);
            if meant.is_empty() {
                return Err(refused());
            }
            meant.into_iter().for_each(|word| self.add(word));
            return Ok(());
        }
        let taken = word.strip_prefix(['-', '!']).ok_or_else(refused)?;
        let meant = meant_by(taken);
        if meant.is_empty() && !NEVER.contains(&taken) && !matches!(taken, "COMP-ALL" | "CTYPE-ALL") {
            return Err(refused());
        }
        self.0.retain(|word| !meant.contains(word));
        Ok(())
    }

    fn has(&self, word: &str) -> bool {
        self.0.contains(&word)
    }

    fn for_openssl(&self, proof: Proof) -> Result<Priority, String> {
        // Without a certificate and without a key there is no TLS 1.3.
        let old = self.has(TLS_1_2);
        let new = self.has(TLS_1_3) && proof != Proof::Nothing;
        let ciphers = if old { self.ciphers(proof) } else { String::new() };
        let suites = if new { self.suites(proof) } else { String::new() };
        let versions = (!ciphers.is_empty(), !suites.is_empty());
        let (lowest, highest) = match versions {
            (true, true) => (SslVersion::TLS1_2, SslVersion::TLS1_3),
            (true, false) => (SslVersion::TLS1_2, SslVersion::TLS1_2),
            (false, true) => (SslVersion::TLS1_3, SslVersion::TLS1_3),
            (false, false) => return Err("no protocol or no cipher is left".to_owned()),
        };
        let groups = GROUPS.iter().filter(|(word, _)| self.has(word));
        let groups: Vec<&str> = groups.map(|(_, name)| *name).collect();
        if groups.is_empty() {
            return Err("no group is left".to_owned());
        }
        Ok(Priority {
            lowest,
            highest,
            ciphers,
            suites,
            groups: groups.join(":"),
        })
    }

    /// Each exchange with each cipher.
    fn ciphers(&self, proof: Proof) -> String {
        let mut words: Vec<String> = Vec::new();
        if self.has(AEAD) {
            let aeads = AEADS.iter().filter(|(word, ..)| self.has(word));
            words.extend(aeads.map(|(_, names, _)| (*names).to_owned()));
        }
        for (_, cipher) in BLOCKS.iter().filter(|(word, _)| self.has(word)) {
            let digests = DIGESTS.iter().filter(|(word, _)| self.has(word));
            words.extend(digests.map(|(_, digest)| format!("{cipher}+{digest}")));
        }
        let exchanges = EXCHANGES
            .iter()
            .filter(|(word, of, _)| *of == proof && self.has(word));
        let mut list: Vec<String> = Vec::new();
        for (.., exchange) in exchanges {
            list.extend(words.iter().map(|cipher| format!("{exchange}+{cipher}")));
        }
        if !list.is_empty() {
            list.push("!AESCCM8".to_owned());
            if proof == Proof::Nothing {
                // What proves nothing is secure on no level.
                list.push("@SECLEVEL=0".to_owned());
            }
        }
        list.join(":")
    }

    fn suites(&self, proof: Proof) -> String {
        let suites = AEADS.iter().filter(|(word, ..)| self.has(word));
        // A key that both sides have goes with the digest that both assume.
        let suites = suites.filter(|(.., suite)| proof != Proof::Key || suite.ends_with("SHA256"));
        let suites: Vec<&str> = suites
            .map(|(.., suite)| *suite)
            .filter(|suite| !suite.is_empty())
            .collect();
        suites.join(":")
    }
}

/// What a word stands for: itself, or all words of a kind.
fn meant_by(word: &str) -> Vec<&'static str> {
    match word {
        "VERS-ALL" | "VERS-TLS-ALL" => vec![TLS_1_2, TLS_1_3],
        "KX-ALL" => EXCHANGES.iter().map(|(word, ..)| *word).collect(),
        "CIPHER-ALL" => {
            let aeads = AEADS.iter().map(|(word, ..)| *word);
            aeads.chain(BLOCKS.iter().map(|(word, _)| *word)).collect()
        }
        "MAC-ALL" => DIGESTS.iter().map(|(word, _)| *word).chain([AEAD]).collect(),
        "GROUP-ALL" | "CURVE-ALL" => GROUPS.iter().map(|(word, _)| *word).collect(),
        _ => all().filter(|known| *known == word).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, proof: Proof) -> Priority {
        Priority::parse(Some(text), proof).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn what_is_taken_away_is_gone_and_what_openssl_is_told_it_understands() {
        use openssl::ssl::{SslContextBuilder, SslMethod};
        for proof in [Proof::Certificate, Proof::Key, Proof::Nothing] {
            let sets = [
                "NORMAL",
                "PFS",
                "SECURE128",
                "SECURE192",
                "SECURE256",
                "@QEMU,SYSTEM",
            ];
            for set in sets {
                let Priority {
                    ciphers,
                    suites,
                    groups,
                    ..
                } = parsed(set, proof);
                let mut context = SslContextBuilder::new(SslMethod::tls_server()).unwrap();
                context.set_cipher_list(&ciphers).unwrap();
                assert_eq!(suites.is_empty(), proof == Proof::Nothing, "{set}");
                context.set_ciphersuites(&suites).unwrap();
                context.set_groups_list(&groups).unwrap();
            }
        }
        let less = parsed(
            "NORMAL:-AES-256-GCM:!AES-256-CBC:-RSA:-GROUP-SECP256R1",
            Proof::Certificate,
        );
        assert!(!less.suites.contains("AES_256_GCM") && less.suites.contains("AES_128_GCM"));
        assert!(!less.ciphers.contains("AES256+AESGCM") && !less.ciphers.contains("AES256+SHA1"));
        assert!(!less.ciphers.contains("kRSA") && !less.groups.contains("P-256"));
    }

    #[test]
    fn protocols_are_those_that_are_left() {
        let versions = |text, proof| {
            let priority = parsed(text, proof);
            (priority.lowest, priority.highest)
        };
        let (old, new) = (SslVersion::TLS1_2, SslVersion::TLS1_3);
        assert_eq!(versions("NORMAL", Proof::Certificate), (old, new));
        assert_eq!(versions("NORMAL:-VERS-TLS1.3", Proof::Certificate), (old, old));
        assert_eq!(versions("NORMAL:-VERS-ALL:+VERS-TLS1.3", Proof::Key), (new, new));
        assert_eq!(versions("NORMAL", Proof::Nothing), (old, old));
    }
}
