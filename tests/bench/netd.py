"""A netd to measure: in a network namespace of its own, with a network that keeps warm TAPs and one that does not. Needs
root."""
import os
import pwd
import shutil
import subprocess
import tempfile
import time

CONFIG = """
[[network]]
name = "warm"
bridge = "vmsup0"
subnet = "10.77.0.1/24"
users = ["vmsup-test"]
leases = 64
pool = 2

[[network]]
name = "cold"
bridge = "vmsup1"
subnet = "10.78.0.1/24"
users = ["vmsup-test"]
leases = 64
pool = 0
"""

# The namespace belongs to the process that this becomes, and goes with it.
START = """
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
nft -f "$1"
shift
exec "$@"
"""


class Netd:
    def __init__(self, program, rules):
        self.folder = tempfile.mkdtemp(prefix="vmsup-bn", dir="/tmp")
        os.chmod(self.folder, 0o755)
        run = os.path.join(self.folder, "run")
        os.mkdir(run, 0o755)
        user = pwd.getpwnam("vmsup-netd")
        os.chown(run, user.pw_uid, user.pw_gid)
        config = os.path.join(self.folder, "netd.toml")
        with open(config, "w", encoding="ascii") as out:
            out.write(CONFIG)
        self.socket = os.path.join(run, "netd.sock")
        log = os.path.join(self.folder, "log")
        command = [program, "--config", config, "--socket", self.socket, "--journal", os.path.join(run, "journal"),
                   "--user", "vmsup-netd"]
        with open(log, "wb") as stderr:
            self.process = subprocess.Popen(["unshare", "--net", "sh", "-ec", START, "sh", rules] + command,
                                            stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
        while True:
            with open(log, encoding="ascii", errors="replace") as said:
                text = said.read()
            if "vmsup-netd: serving " in text:
                break
            if self.process.poll() is not None:
                self.close()
                raise SystemExit(f"bench: no netd: {text}")
            time.sleep(0.01)

    def env(self):
        """What tells the unprivileged half of it."""
        return {"VMSUP_NETD_SOCKET": self.socket, "VMSUP_BENCH_NETD": str(self.process.pid)}

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
