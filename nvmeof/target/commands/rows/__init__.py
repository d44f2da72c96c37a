"""What a row of a feature or of a log page is.

Must not know single features or pages.
"""
