"""An image of Ceph RBD as a namespace: ``rbd:POOL/IMAGE``. `library` has librbd's functions, `image` an open image with
its requests, `backend` the storage."""
