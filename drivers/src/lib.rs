//! What a node does: the ring, protocol drivers, format drivers and filters.
