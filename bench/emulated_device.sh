#!/usr/bin/env bash
# An emulated arm64 device on an x86-64 Linux machine: a Debian arm64 root whose programs run in qemu's user mode, behind
# a real OpenSSH server on loopback. For tests of another architecture and of the transport, never for a latency.
#
#     bench/emulated_device.sh FOLDER [start]     build what is missing, start, print the ssh config and the host alias
#     bench/emulated_device.sh FOLDER stop        end every process of the device and take back what the kernel was told
#     bench/emulated_device.sh FOLDER remove      stop, then delete what was built
#
# Needs root, Debian or a relative of it, its package mirror and a Python package index. Missing packages are installed.
# Everything is built in FOLDER; ~/.ssh is neither read nor written, and no mount is made that other processes see.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # debootstrap, chroot and sshd are there

SUITE=${SUITE:-bookworm}                           # its Python must be 3.10 or newer
MIRROR=${MIRROR:-http://deb.debian.org/debian}
INCLUDE=${INCLUDE:-python3}                        # Debian packages of the device, separated by commas
RUNTIMES=${RUNTIMES-numpy onnxruntime}             # Python packages of the device; openvino has aarch64 wheels too
CONSTRAINTS=${CONSTRAINTS:-}                       # a pip constraints file, for the versions of the host's tests
PYTHON=${PYTHON:-python3}                          # a host Python with pip; it only downloads and unpacks
PORT=${PORT:-22064}                                # of the ssh server, on 127.0.0.1
ALIAS=${ALIAS:-emulated-arm64}
EMULATED_CPU=${EMULATED_CPU:-cortex-a76}           # a Raspberry Pi 5's core; qemu's default has extensions few boards have

die() {
    echo "emulated_device.sh: $*" >&2
    exit 2
}

require() { # COMMAND PACKAGE ...: installs the packages whose command is missing
    local missing=()
    while (($#)); do
        command -v "$1" >/dev/null || missing+=("$2")
        shift 2
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "${missing[*]} missing and there is no apt-get; install them and run this again."
    # The ssh server's package would start a server of its own on port 22; this file makes packages start nothing.
    local policy=/usr/sbin/policy-rc.d made=
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        made=yes
    fi
    local status=0
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "${missing[@]}"; } \
        >&2 || status=$?
    [[ -z $made ]] || rm -f "$policy"
    ((status == 0)) || die "apt-get could not install ${missing[*]}; see its output above."
}

emulation() { # on | off; in a mount namespace of the caller's own
    # 64-bit little-endian ELF programs and shared objects for AArch64
    local magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir /run/binfmt_misc
    if ! mount -t binfmt_misc binfmt_misc /run/binfmt_misc; then
        [[ $1 == on ]] || return 0
        die "the kernel has no binfmt_misc here; a container needs to be privileged, a kernel CONFIG_BINFMT_MISC."
    fi
    # Since Linux 6.7 a rule ends with the last mount of this file system, before that it outlives it.
    if [[ -e /run/binfmt_misc/$RULE ]]; then echo -1 >"/run/binfmt_misc/$RULE"; fi
    [[ $1 == on ]] || return 0
    # F opens qemu now, so that it need not exist in the device's root; P keeps argv[0], which sys.executable is made from
    printf %s ":$RULE:M:0:$magic:$mask:$(command -v qemu-aarch64-static):PF" >/run/binfmt_misc/register
}

inside() { # VERB: this script again, in namespaces whose mounts and processes all end with its first process
    exec setsid unshare --mount --pid --fork --kill-child bash "$SELF" "$FOLDER" "$1" 9>&-
}

build_root() {
    [[ -d $FOLDER/root ]] && return
    rm -rf --one-file-system "$FOLDER/root.partial"
    debootstrap --arch=arm64 --foreign --variant=minbase --include="$INCLUDE" "$SUITE" "$FOLDER/root.partial" "$MIRROR" >&2
    (inside second-stage) >&2
    rm -f "$FOLDER"/root.partial/var/cache/apt/archives/*.deb
    mv "$FOLDER/root.partial" "$FOLDER/root"
}

install_runtimes() {
    local wanted="$RUNTIMES ${CONSTRAINTS:+$(cksum <"$CONSTRAINTS")}" stamp=$FOLDER/root/.runtimes
    [[ -z $RUNTIMES || $(cat "$stamp" 2>/dev/null) == "$wanted" ]] && return
    local minor glibc tags=(--platform=manylinux2014_aarch64)
    minor=$(readlink "$FOLDER/root/usr/bin/python3" | sed 's/python3\.//')
    for glibc in {17..36}; do
        tags+=("--platform=manylinux_2_${glibc}_aarch64")
    done
    # The host's pip unpacks wheels for the device, which takes seconds; the device's own would be emulated.
    # Nothing is compiled ahead: the host's byte code may be another version's.
    # shellcheck disable=SC2086 # RUNTIMES is a list
    "$PYTHON" -m pip install --quiet --no-compile --upgrade --only-binary=:all: --implementation=cp \
        --python-version="3.$minor" "${tags[@]}" ${CONSTRAINTS:+--constraint="$CONSTRAINTS"} \
        --target="$FOLDER/root/usr/local/lib/python3.$minor/dist-packages" $RUNTIMES >&2
    echo "$wanted" >"$stamp"
}

write_ssh() {
    local ssh=$FOLDER/ssh key
    mkdir -p "$ssh"
    chmod 700 "$ssh"
    for key in host_key user_key; do
        [[ -e $ssh/$key ]] || ssh-keygen -q -t ed25519 -N '' -C "$ALIAS" -f "$ssh/$key"
    done
    echo "$ALIAS $(cut -d' ' -f1,2 "$ssh/host_key.pub")" >"$ssh/known_hosts"
    cat >"$ssh/config" <<END
Host $ALIAS
    HostName 127.0.0.1
    Port $PORT
    User root
    HostKeyAlias $ALIAS
    IdentityFile "$ssh/user_key"
    IdentitiesOnly yes
    UserKnownHostsFile "$ssh/known_hosts"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
END
    # Shells and the file server are both inside the device's root: what scp puts there is what a command finds.
    cat >"$ssh/sshd_config" <<END
ListenAddress 127.0.0.1:$PORT
HostKey "$ssh/host_key"
AuthorizedKeysFile "$ssh/user_key.pub"
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
PidFile none
PrintMotd no
ChrootDirectory $MOUNTED
Subsystem sftp internal-sftp
SetEnv QEMU_CPU=$EMULATED_CPU
END
}

boot() {
    local file
    emulation on
    # in the empty /run that this made: sshd wants a folder there, and that only root can write on the way to a new root
    mkdir /run/sshd "$MOUNTED"
    mount --bind "$FOLDER/root" "$MOUNTED"
    mount -t proc proc "$MOUNTED/proc"
    mount --rbind /dev "$MOUNTED/dev"
    mount -t sysfs -o ro sysfs "$MOUNTED/sys" # the host's sensors can be read, nothing can be set
    # A library inside ONNX Runtime crashes on the caches of an x86 host's CPU, one inside OpenVINO without a topology.
    mount -t tmpfs -o mode=755 tmpfs "$MOUNTED$CPUS"
    (cd "$CPUS" && cp -r --parents possible present online cpu[0-9]*/topology "$MOUNTED$CPUS")
    # The server knows the device's users instead of the host's, whose root may have no login or another shell.
    for file in passwd group shadow; do
        mount --bind "$FOLDER/root/etc/$file" "/etc/$file"
    done
    exec /usr/sbin/sshd -D -e -f "$FOLDER/ssh/sshd_config"
}

device_pid() { # of the process that holds the namespaces; fails when the device is off
    local pid
    pid=$(cat "$FOLDER/device.pid" 2>/dev/null) || return 1
    # a left-over number can be another process by now
    tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF -- "$FOLDER" && echo "$pid"
}

answers() {
    timeout 30 ssh -F "$FOLDER/ssh/config" -o ConnectTimeout=10 "$ALIAS" true 2>/dev/null </dev/null
}

start() {
    require qemu-aarch64-static qemu-user-static debootstrap debootstrap sshd openssh-server ssh openssh-client
    build_root
    grep -q ^sshd: "$FOLDER/root/etc/passwd" ||
        echo 'sshd:x:499:65534::/run/sshd:/usr/sbin/nologin' >>"$FOLDER/root/etc/passwd"
    install_runtimes
    local before
    before=$(cat "$FOLDER/ssh/sshd_config" 2>/dev/null) || true
    write_ssh
    # one that runs with other settings cannot be reached with these
    [[ $before == "$(<"$FOLDER/ssh/sshd_config")" ]] || stop
    if ! device_pid >/dev/null; then
        (inside boot) >"$FOLDER/sshd.log" 2>&1 </dev/null &
        echo $! >"$FOLDER/device.pid"
    fi
    local pause
    for pause in 0.2 0.5 1 2 4 8; do
        sleep "$pause"
        if answers; then
            echo "ssh config: $FOLDER/ssh/config"
            echo "host alias: $ALIAS"
            return
        fi
        device_pid >/dev/null || break
    done
    tail -n 5 "$FOLDER/sshd.log" >&2
    stop
    die "the device did not answer on port $PORT; its log is $FOLDER/sshd.log, and PORT sets another port."
}

stop() {
    local pid
    if pid=$(device_pid); then
        kill -KILL "$pid" # unshare ignores a polite request; its death ends the namespace, and so all that runs there
        while [[ -e /proc/$pid ]]; do sleep 0.1; done
    fi
    rm -f "$FOLDER/device.pid"
    (inside unregister)
}

(($# == 1 || $# == 2)) || die "usage: emulated_device.sh FOLDER [start|stop|remove]."
((EUID == 0)) || die "it must run as root: it mounts, changes roots and registers a program format."
[[ $(uname -sm) == "Linux x86_64" ]] || die "it emulates arm64 on x86-64 Linux; this is $(uname -sm)."
umask 022
SELF=$(realpath -- "${BASH_SOURCE[0]}")
mkdir -p -- "$1"
FOLDER=$(realpath -- "$1")
[[ $FOLDER != /run/* ]] || die "$FOLDER is in /run, which the device covers with its own; choose another folder."
MOUNTED=/run/device
CPUS=/sys/devices/system/cpu
RULE=$ALIAS-$(printf %s "$FOLDER" | cksum | cut -d' ' -f1) # of this folder only, beside a system's own rule
case ${2:-start} in # the verbs of inside
second-stage)
    emulation on
    QEMU_CPU=$EMULATED_CPU exec chroot "$FOLDER/root.partial" /debootstrap/debootstrap --second-stage
    ;;
boot) boot ;;
unregister)
    emulation off
    exit
    ;;
esac
exec 9>"$FOLDER/lock"
flock 9
case ${2:-start} in
start) start ;;
stop) stop ;;
remove)
    stop
    rm -rf --one-file-system "$FOLDER"/{root,root.partial,ssh,sshd.log,lock}
    rmdir --ignore-fail-on-non-empty "$FOLDER"
    ;;
*) die "'$2' is none of start, stop, remove." ;;
esac
