//! Formats of other programs: told from the names of their images, to say that they are not served.

/// What names of images in other formats end in, and what the format is called.
const SUFFIXES: &[(&str, &str)] = &[
    ("dmg", "DMG"),
    ("hdd", "Parallels"),
    ("hds", "Parallels"),
    ("iso", "ISO 9660"),
    ("parallels", "Parallels"),
    ("qcow", "qcow"),
    ("qed", "QED"),
    ("vhd", "VHD"),
    ("vhdx", "VHDX"),
    ("vmdk", "VMDK"),
    ("vpc", "VHD"),
];

/// The format of an image whose name ends in `suffix`, where it is one that is not served.
pub fn format(suffix: &str) -> Option<&'static str> {
    let row = SUFFIXES.iter().find(|(known, _)| *known == suffix);
    row.map(|(_, format)| *format)
}
