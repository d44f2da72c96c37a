"""The files in which hosts keep what they connect to: discovery.conf of nvme-cli and config.json of libnvme."""
