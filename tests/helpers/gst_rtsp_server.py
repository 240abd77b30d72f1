"""GStreamer's RTSP server: plays an H.264 file of Matroska at its own speed, as a camera sends.

Run by the system's Python: gst_rtsp_server.py FILE.mkv udp|tcp; prints its port.
"""

import sys

import gi

for name in ("Gst", "GstRtsp", "GstRtspServer"):
    gi.require_version(name, "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(f"( filesrc location={sys.argv[1]} ! matroskademux ! rtph264pay config-interval=1 name=pay0 pt=96 )")
factory.set_protocols({"udp": GstRtsp.RTSPLowerTrans.UDP, "tcp": GstRtsp.RTSPLowerTrans.TCP}[sys.argv[2]])
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
sys.stdout.write(f"{server.get_bound_port()}\n")
sys.stdout.flush()
GLib.MainLoop().run()
