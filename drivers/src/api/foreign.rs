//! Formats that are known by how they begin, and that no driver here reads. An image of one must not be taken for a raw
//! image: whoever writes to it so destroys it.

/// Where a format's mark is, and what it is.
const MARKS: &[(usize, &[u8], &str)] = &[
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"QED\0", "QED"),
    (0, b"QFI\xfb\0\0\0\x01", "qcow version 1"),
    (0, b"LUKS\xba\xbe\0\x02", "LUKS 2"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"Bochs Virtual HD Image", "Bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
];

/// The format that an image which begins with `head` looks like, if it is one of those that no driver reads.
#[must_use]
pub fn foreign_format(head: &[u8]) -> Option<&'static str> {
    let is_there =
        |(at, mark, _): &&(usize, &[u8], &str)| head.get(*at..).is_some_and(|rest| rest.starts_with(mark));
    MARKS.iter().find(is_there).map(|(.., name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_where_they_belong() {
        assert_eq!(foreign_format(&[0; 512]), None);
        assert_eq!(foreign_format(b"KDMV"), Some("VMDK"));
        assert_eq!(foreign_format(b"KDM"), None);
        assert_eq!(foreign_format(b"QFI\xfb\0\0\0\x03"), None);
        assert_eq!(foreign_format(b""), None);
    }
}
