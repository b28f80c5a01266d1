"""Who calls, in the words of many systems: the only file that knows header and body-field names.

One ordered list of conventions; the first that names a thing wins. It refuses to know sockets, tenants' keys, content.
"""
