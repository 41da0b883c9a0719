"""Pretrained weights that ship with minitl."""
