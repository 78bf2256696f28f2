"""What the door offers where Detectron2 is not installed. Import these names from `mask2former.d2.*` only."""
