# shellcheck shell=bash
# lib.sh - functions for scripts run by guest:  . /job/lib.sh
CF=/sys/kernel/config/nvmet

nvmet_up() {      # nvmet_up NQN BLOCKDEV [ADDR [PORT]]: export BLOCKDEV as namespace 1
  local nqn=$1 dev=$2 addr=${3:-127.0.0.1} port=${4:-4420} s=$CF/subsystems/$1 p=$CF/ports/${4:-4420}
  modprobe -a nvmet nvmet-tcp || return
  mkdir -p "$s/namespaces/1" "$p" || return
  echo 1 >"$s/attr_allow_any_host"
  echo "$dev" >"$s/namespaces/1/device_path" && echo 1 >"$s/namespaces/1/enable" || return
  echo tcp >"$p/addr_trtype"; echo ipv4 >"$p/addr_adrfam"
  echo "$addr" >"$p/addr_traddr"; echo "$port" >"$p/addr_trsvcid"
  ln -s "$s" "$p/subsystems/$nqn"
}
nvmet_down() {    # nvmet_down NQN [PORT]
  local s=$CF/subsystems/$1 p=$CF/ports/${2:-4420}
  rm -f "$p/subsystems/$1"; rmdir "$p"
  echo 0 >"$s/namespaces/1/enable"; rmdir "$s/namespaces/1" "$s"
}
ramdisk() {       # ramdisk MB: make and print a ram-backed block device
  modprobe brd rd_nr=1 max_part=0 rd_size=$(($1 * 1024)) && echo /dev/ram0
}
nvme_dev() {      # nvme_dev NQN [NSID]: wait for and print the first namespace of that subsystem, or the one of that
  local s d       # NSID: the number in the name of a device is none, since 6.12 names namespaces as it finds them
  for _ in $(seq 100); do
    for s in /sys/class/nvme-subsystem/*; do
      [ "$(cat "$s/subsysnqn" 2>/dev/null)" = "$1" ] || continue
      for d in "$s"/nvme*n[0-9]*; do
        case ${d##*/} in *c[0-9]*n*) continue ;; esac
        [ -z "${2:-}" ] || [ "$(cat "$d/nsid" 2>/dev/null)" = "$2" ] || continue
        [ -b "/dev/${d##*/}" ] && { echo "/dev/${d##*/}"; return; }
      done
    done
    sleep 0.05
  done
  return 1
}
fio_head() { printf '%-22s %10s %9s %9s %9s %9s %9s\n' job IOPS MB/s mean_us p50_us p99_us p99.9_us; }
fio_row() {       # fio_row NAME DEV RW BS QD [SECS] [FIO ARGS...]
  local name=$1 dev=$2 rw=$3 bs=$4 qd=$5 secs=${6:-5}; shift $(($# > 6 ? 6 : $#))
  fio --name="$name" --filename="$dev" --rw="$rw" --bs="$bs" --iodepth="$qd" --ioengine=libaio --direct=1 \
      --lat_percentiles=1 --clat_percentiles=0 --time_based --runtime="$secs" --ramp_time=0.5 --output-format=json "$@" >/tmp/fio.json || return
  jq -r --arg n "$name" '.jobs[0] | (if .read.total_ios > .write.total_ios then .read else .write end) |
    [$n, .iops, .bw_bytes / 1e6, .lat_ns.mean / 1e3, .lat_ns.percentile["50.000000"] / 1e3,
     .lat_ns.percentile["99.000000"] / 1e3, .lat_ns.percentile["99.900000"] / 1e3] | @tsv' /tmp/fio.json |
    awk -F'\t' '{printf "%-22s %10.0f %9.1f %9.0f %9.0f %9.0f %9.0f\n", $1,$2,$3,$4,$5,$6,$7}'
}
