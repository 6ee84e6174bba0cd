"""Configurations: composed, checked, made into objects and fingerprinted; imports no other room."""
