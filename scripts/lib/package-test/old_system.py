"""An old system, made of this one.

libraries DIR         copies the C library and its loader into DIR, without the functions that glibc got after 2.17 (CentOS 7):
                      neither the loader nor dlsym finds them there
calls -- COMMAND...   runs a command to which system calls that Linux got after 3.10 (CentOS 7) do not exist

A real CentOS 7 would be better, but is not to be had of the package registries that the build uses.
"""

import ctypes
import os
import shutil
import struct
import sys

GLIBC = (2, 17)
# The last system call of Linux 3.10 on x86-64 is 313, finit_module.
FIRST_NEW_CALL = 314
LIBRARIES = ["libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"]
LOADER = "/lib64/ld-linux-x86-64.so.2"

SHT_DYNSYM, SHT_VERDEF, SHT_VERNEED, SHT_VERSYM = 11, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF


def main(words):
    if words[:1] == ["libraries"] and len(words) == 2:
        libraries(words[1])
    elif words[:2] == ["calls", "--"] and len(words) > 2:
        without_new_calls()
        os.execvp(words[2], words[2:])
    else:
        sys.exit(__doc__)


def libraries(folder):
    os.makedirs(folder, exist_ok=True)
    shutil.copy(LOADER, folder)
    for name in LIBRARIES:
        ctypes.CDLL(name)
        path = next(line.split()[-1] for line in open("/proc/self/maps") if line.rstrip().endswith("/" + name))
        elf = Elf(open(path, "rb").read())
        hidden = elf.hide_new()
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(elf.code)
        os.chmod(path, 0o755)
        print(f"{name}: {hidden} functions are younger than glibc {GLIBC[0]}.{GLIBC[1]}")


class Elf:
    """A library whose symbols have versions."""

    def __init__(self, code):
        self.code = bytearray(code)
        (table,) = self.unpack("<Q", 40)
        entry, count = self.unpack("<HH", 58)
        # (kind, offset, size, number of the linked section)
        every = [self.unpack("<IIQQQQI", table + entry * index) for index in range(count)]
        self.sections = [(kind, offset, size, link) for _, kind, _, _, offset, size, link in every]

    def hide_new(self):
        """Makes versions that are too new unlike what anybody asks for, and their symbols no default; how many there are.

        A version is looked up by its hash and its name. These libraries' own, of each other, agree on another hash.
        """
        new = set()
        for at, _ in self.chain(SHT_VERDEF, 16):
            (aux,) = self.unpack("<I", at + 12)
            number, _, digest = self.unpack("<HHI", at + 4)
            if self.is_new(SHT_VERDEF, at + aux):
                new.add(number)
                struct.pack_into("<I", self.code, at + 8, digest ^ 1)
        self.ask_as_changed()
        return self.no_defaults(new)

    def ask_as_changed(self):
        for at, names in self.chain(SHT_VERNEED, 12):
            _, count, file, aux, _ = self.unpack("<HHIII", at)
            if self.text(names, file) not in LIBRARIES:
                continue
            at += aux
            for _ in range(count):
                digest, _, _, name, step = self.unpack("<IHHII", at)
                if too_new(self.text(names, name)):
                    struct.pack_into("<I", self.code, at, digest ^ 1)
                at += step

    def no_defaults(self, versions):
        symbols, size, _ = self.section(SHT_DYNSYM)
        numbers, _, _ = self.section(SHT_VERSYM)
        hidden = 0
        for index in range(size // 24):
            (section,) = self.unpack("<H", symbols + 24 * index + 6)
            (number,) = self.unpack("<H", numbers + 2 * index)
            if section != 0 and number & 0x7FFF in versions:
                struct.pack_into("<H", self.code, numbers + 2 * index, number | 0x8000)
                hidden += 1
        return hidden

    def is_new(self, kind, aux):
        _, _, names = self.section(kind)
        (name,) = self.unpack("<I", aux)
        return too_new(self.text(names, name))

    def chain(self, kind, step):
        """(offset, number of the section with the names) of each entry."""
        if kind not in [section[0] for section in self.sections]:
            return
        at, _, names = self.section(kind)
        while True:
            yield at, names
            (following,) = self.unpack("<I", at + step)
            if following == 0:
                return
            at += following

    def section(self, kind):
        return next(section[1:] for section in self.sections if section[0] == kind)

    def text(self, section, offset):
        start = self.sections[section][1] + offset
        return self.code[start : self.code.index(b"\0", start)].decode()

    def unpack(self, form, at):
        return struct.unpack_from(form, self.code, at)


def too_new(version):
    kind, _, number = version.partition("_")
    return kind == "GLIBC" and number[:1].isdigit() and tuple(map(int, number.split("."))) > GLIBC


def without_new_calls():
    """From here on each of them is answered with ENOSYS, in this process and all that it starts."""
    load_number, if_less, allow, refuse = 0x20, 0x35, 0x7FFF0000, 0x00050000 | 38
    program = [
        (load_number, 0, 0, 0),
        (if_less, 0, 1, FIRST_NEW_CALL),
        (0x06, 0, 0, refuse),
        (0x06, 0, 0, allow),
    ]
    filters = b"".join(struct.pack("<HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(filters)
    described = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    for words in [(no_new_privileges, 1, 0, 0, 0), (set_seccomp, filter_mode, ctypes.addressof(described), 0, 0)]:
        if libc.prctl(*(ctypes.c_ulong(word) for word in words)) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


main(sys.argv[1:])
