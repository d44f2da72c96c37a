"""Namespaces as exports of an NBD server.

`disk` is a namespace in bytes, `transmission` what one client asks for, `server` who may connect.
"""
