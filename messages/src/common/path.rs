//! Names of files: which have a protocol, which are absolute, and how a relative one joins its base.

/// Why a backing file's full name cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A `json:` name has no directory to be relative to, and an empty one has none either.
    #[error("Cannot use relative backing file names for '{0}'")]
    NoDirectory(String),
}

/// Whether `path` starts with a protocol, as in `nbd:host`: a colon before any slash.
#[must_use]
pub fn path_has_protocol(path: &str) -> bool {
    path.find([':', '/'])
        .is_some_and(|at| path.as_bytes().get(at) == Some(&b':'))
}

/// Whether `path` is a path from the root. A name with a protocol is none, whatever follows the protocol.
#[must_use]
pub fn path_is_absolute(path: &str) -> bool {
    path.starts_with('/')
}

/// `filename` as seen from the file `base`: itself when absolute, else beside the base, whose protocol it gets. Whether
/// `filename` has a protocol of its own is for the caller to ask.
#[must_use]
pub fn path_combine(base: &str, filename: &str) -> String {
    if path_is_absolute(filename) {
        return filename.to_owned();
    }
    let protocol_end = if path_has_protocol(base) {
        base.find(':').map_or(0, |at| at + 1)
    } else {
        0
    };
    let directory_end = base.rfind('/').map_or(0, |at| at + 1).max(protocol_end);
    let mut combined = base.get(..directory_end).unwrap_or_default().to_owned();
    combined.push_str(filename);
    combined
}

/// The full name of a backing file: `stored` is the name found in the overlay, `overlay` the overlay's own filename.
///
/// # Errors
/// A relative name needs an overlay with a directory: a `json:` name has none, and neither has an empty one.
pub fn full_backing_filename(overlay: &str, stored: &str) -> Result<String, PathError> {
    if stored.is_empty() || path_has_protocol(stored) || path_is_absolute(stored) {
        return Ok(stored.to_owned());
    }
    if overlay.is_empty() || overlay.starts_with("json:") {
        return Err(PathError::NoDirectory(overlay.to_owned()));
    }
    Ok(path_combine(overlay, stored))
}

/// `path` without what changes nothing about where it leads: `.`, doubled slashes, and a `..` with the name before it.
/// Links between directories are not looked at.
#[must_use]
pub fn path_clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_a_colon_before_any_slash() {
        assert!(path_has_protocol("nbd:localhost:10809"));
        assert!(path_has_protocol("json:{}"));
        assert!(!path_has_protocol("/images/a:b"));
        assert!(!path_has_protocol("./a:b"));
        assert!(!path_has_protocol("disk.qcow2"));
    }

    #[test]
    fn absolute_paths_start_with_a_slash() {
        for path in ["/x", "/", "//x", "/a:b"] {
            assert!(path_is_absolute(path), "{path}");
        }
        for path in ["", "x/y", "./x", "file:x", "file:/x", "json:/x"] {
            assert!(!path_is_absolute(path), "{path}");
        }
    }

    #[test]
    fn relative_names_join_their_bases_directory() {
        for (base, filename, combined) in [
            ("/images/top.qcow2", "base.qcow2", "/images/base.qcow2"),
            ("top.qcow2", "base.qcow2", "base.qcow2"),
            ("images/", "base", "images/base"),
            ("file:top.qcow2", "base.qcow2", "file:base.qcow2"),
            ("file:images/top", "base", "file:images/base"),
            ("/a:b/top", "base", "/a:b/base"),
            ("/images/top", "/other/base", "/other/base"),
            ("nbd:host", "/base", "/base"),
            // No caller asks this of a name that has a protocol.
            ("/images/top", "nbd:host", "/images/nbd:host"),
            ("", "base", "base"),
        ] {
            assert_eq!(path_combine(base, filename), combined, "{filename} beside {base}");
        }
    }

    #[test]
    fn detours_are_left_out_of_paths() {
        for (path, clean) in [
            ("/a/./b//c", "/a/b/c"),
            ("/a/x/../b/", "/a/b"),
            ("/../a", "/a"),
            ("../../a/../b", "../../b"),
            ("a/..", ""),
            ("/", "/"),
        ] {
            assert_eq!(path_clean(path), clean);
        }
    }

    #[test]
    fn backing_names_are_completed_from_the_overlays() {
        assert_eq!(full_backing_filename("/a/top", "base").unwrap(), "/a/base");
        assert_eq!(full_backing_filename("json:{}", "/b").unwrap(), "/b");
        assert_eq!(full_backing_filename("/a/top", "nbd:host").unwrap(), "nbd:host");
        assert_eq!(full_backing_filename("/a/top", "file:/b").unwrap(), "file:/b");
        assert_eq!(full_backing_filename("/a/top", "").unwrap(), "");
        for overlay in ["json:{}", ""] {
            let refused = full_backing_filename(overlay, "b").unwrap_err();
            let text = format!("Cannot use relative backing file names for '{overlay}'");
            assert_eq!(refused.to_string(), text);
        }
    }
}
