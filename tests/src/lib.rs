//! What the tests of this folder share: starting programs, talking QMP and NBD.
