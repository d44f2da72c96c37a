"""Any NBD server as a namespace: ``nbd:URI``. `backend` is the storage, `client` the connections and what happens when
they are lost, `connection` one of them, `replies` what a server sends."""
