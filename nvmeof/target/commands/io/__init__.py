"""Commands of the NVM command set that read and write blocks."""
