"""Which OpenGL library MuJoCo draws with where there is no screen.

MuJoCo reads MUJOCO_GL when it is imported, and importing the task families imports MuJoCo: call `choose_backend` before
that. This module imports nothing of the platform but its error.
"""

import ctypes
import os

from promptdiffuser.errors import UserError

OSMESA_LIBRARIES = ("libOSMesa.so", "libOSMesa.so.8", "libOSMesa.so.6")
LIBRARIES = {
    "egl": "EGL (libEGL.so.1 with a driver; Debian packages libegl1 and libegl-mesa0)",
    "osmesa": "OSMesa (libOSMesa.so; Debian package libosmesa6)",
}
"""What MuJoCo can draw with, in the order of preference: EGL uses a GPU where there is one."""


def choose_backend() -> str:
    """Set MUJOCO_GL to what works here, `egl` or `osmesa`, unless the user has set it, and return it.

    Raises:
        UserError: Nothing works, or not what the user has set.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    if wanted and wanted not in LIBRARIES:
        raise UserError(f"MUJOCO_GL={wanted} cannot draw without a screen; use egl or osmesa, or leave it unset")
    works = {"egl": _has_egl, "osmesa": _has_osmesa}
    backend = next((name for name in ([wanted] if wanted else LIBRARIES) if works[name]()), None)
    if backend is None:
        needed = LIBRARIES[wanted] if wanted else f"{LIBRARIES['egl']} or {LIBRARIES['osmesa']}"
        hint = f"install it, or leave MUJOCO_GL={wanted} unset" if wanted else "install one of them"
        raise UserError(f"rendering without a screen needs {needed}, which does not work here; {hint}")
    os.environ["MUJOCO_GL"] = backend
    return backend


def _has_egl() -> bool:
    """Tell whether EGL is there and knows a device, as MuJoCo asks it (mujoco/egl/__init__.py)."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    except (OSError, AttributeError):
        return False
    if not address:
        return False
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    devices = ctypes.c_int(0)
    return bool(query(0, None, ctypes.byref(devices))) and devices.value > 0


def _has_osmesa() -> bool:
    for name in OSMESA_LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
