# shellcheck shell=bash
# survive.sh - functions of the events in the target's guest: . /host/survive.sh
# NQN comes from the driver.  The target lives in a separate network namespace, two links away from its hosts:
# 10.78.i.2 (target) - 10.78.i.1 (guest) - 10.77.i.2 (guest) - 10.77.i.1 (the machine outside).
. /job/lib.sh
set -euo pipefail
S=$CF/subsystems/$NQN
MIB=2048                                              # sectors

now() { date +%s.%N; }
in_target() { nsenter --net=/run/netns/target "$@"; }  # not `ip netns exec`, which hides configfs

net_up() {
  modprobe veth; modprobe sch_netem
  echo 1 >/proc/sys/net/ipv4/ip_forward
  ip netns add target
  for i in 1 2; do
    ip link add "t$i" type veth peer name "link$i" netns target
    ip addr add "10.78.$i.1/24" dev "t$i"; ip link set "t$i" up
    in_target ip addr add "10.78.$i.2/24" dev "link$i"; in_target ip link set "link$i" up
    in_target ip route add "10.77.$i.0/24" via "10.78.$i.1"
    in_target ip route add "10.77.$((i + 2)).0/24" via "10.78.$i.1"     # the second guest's
    ip route add "10.77.$((i + 2)).0/24" via "10.77.$i.1"
  done
  in_target ip link set lo up
}

disks_up() {      # ns: 64 MiB that can grow to 128; other: another 64 MiB
  modprobe dm-mod
  dmsetup create --noudevsync ns --table "0 $((64 * MIB)) linear /dev/vdb 0"
  dmsetup create --noudevsync other --table "0 $((64 * MIB)) linear /dev/vdb $((128 * MIB))"
}

device() {        # device NAME: what is behind NSID 1
  case $1 in
    ns)    echo /dev/dm-0 >"$S/namespaces/1/device_path"
           echo 11111111-1111-4111-8111-111111111111 >"$S/namespaces/1/device_uuid"
           echo 11111111-1111-4111-8111-222222222222 >"$S/namespaces/1/device_nguid" ;;
    other) echo /dev/dm-1 >"$S/namespaces/1/device_path"
           echo 33333333-3333-4333-8333-333333333333 >"$S/namespaces/1/device_uuid"
           echo 33333333-3333-4333-8333-444444444444 >"$S/namespaces/1/device_nguid" ;;
  esac
}

port_up()   { in_target ln -s "$S" "$CF/ports/$1/subsystems/$NQN"; }
port_down() { rm "$CF/ports/$1/subsystems/$NQN"; }
ana()       { echo "$2" >"$CF/ports/$1/ana_groups/1/ana_state"; }

target_up() {
  modprobe -a nvmet nvmet-tcp
  mkdir -p "$S/namespaces/1"
  echo 1 >"$S/attr_allow_any_host"; echo survive0001 >"$S/attr_serial"
  device ns
  echo 1 >"$S/namespaces/1/enable"
  for i in 1 2; do
    mkdir -p "$CF/ports/$i"
    echo tcp >"$CF/ports/$i/addr_trtype"; echo ipv4 >"$CF/ports/$i/addr_adrfam"
    echo "10.78.$i.2" >"$CF/ports/$i/addr_traddr"; echo 4420 >"$CF/ports/$i/addr_trsvcid"
    port_up "$i"
  done
}
target_down() {
  rm -f "$CF"/ports/*/subsystems/*
  rmdir "$CF"/ports/*
  echo 0 >"$S/namespaces/1/enable"; rmdir "$S/namespaces/1" "$S"
  for _ in $(seq 50); do modprobe -r nvmet-tcp nvmet && return; sleep 0.1; done
  return 1
}

resize() {        # resize MIB
  dmsetup reload ns --table "0 $(($1 * MIB)) linear /dev/vdb 0"
  dmsetup suspend --noudevsync ns; dmsetup resume --noudevsync ns
  echo 1 >"$S/namespaces/1/revalidate_size"
}
replace() {       # replace NAME: another device behind NSID 1
  echo 0 >"$S/namespaces/1/enable"; device "$1"; echo 1 >"$S/namespaces/1/enable"
}

netem() {         # netem PATH ARGS...: in both directions; without ARGS as it was
  local i=$1; shift
  if [ $# = 0 ]; then
    tc qdisc del dev "t$i" root; in_target tc qdisc del dev "link$i" root
  else
    tc qdisc replace dev "t$i" root netem "$@"; in_target tc qdisc replace dev "link$i" root netem "$@"
  fi
}

# Of a host's two connections to a port that of the admin queue has carried less where there is a load, and more where
# there is none, as on port 2.
starve() {
  local i peer
  in_target nft add table inet starve
  in_target nft add chain inet starve input '{ type filter hook input priority 0; }'
  in_target nft add chain inet starve output '{ type filter hook output priority 0; }'
  for i in 1 2; do
    in_target ss -tinOH src "10.78.$i.2:4420" | awk -v sign=$((i == 1 ? -1 : 1)) '
      { peer = $5; sub(/:[0-9]+$/, "", peer); bytes = 0
        for (n = 1; n <= NF; n++) if ($n ~ /^bytes_received:/) bytes = sign * substr($n, 16)
        if (!(peer in most) || bytes > most[peer]) { most[peer] = bytes; address[peer] = $5 } }
      END { for (peer in address) print address[peer] }' | while read -r peer; do
      in_target nft add rule inet starve input ip saddr "${peer%:*}" ip daddr "10.78.$i.2" tcp sport "${peer##*:}" drop
      in_target nft add rule inet starve output ip saddr "10.78.$i.2" ip daddr "${peer%:*}" tcp dport "${peer##*:}" drop
    done
  done
}
feed() { in_target nft delete table inet starve; }
