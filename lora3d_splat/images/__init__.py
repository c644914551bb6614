"""Photographs: listing, reading upright, resizing to whole patches."""
