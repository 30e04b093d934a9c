# NVIDIA's nvidia-smi, for the test that runs it; sourced after common.sh.

# need_nvidia_smi: .cache/nvidia-smi/nvidia-smi, from the non-free part of the Debian mirror that this machine uses already
# (it is NVIDIA's to distribute: it is fetched, never kept in git). Installs nothing and needs no root.
need_nvidia_smi() {
    local dir=$CACHE/nvidia-smi
    [ -x "$dir/nvidia-smi" ] && return
    note "nvidia-smi into ${dir#"$REPO"/}"
    rm -rf "$dir"
    mkdir -p "$dir/lists/partial" "$dir/sources"
    cp /etc/apt/sources.list.d/debian.sources "$dir/sources/" 2>/dev/null &&
        sed -i 's/^Components:.*/Components: non-free/' "$dir/sources/debian.sources"
    [ -e /etc/apt/sources.list ] && sed -n 's/^\(deb .* main\)\b.*/\1/p' /etc/apt/sources.list |
        sed 's/ main$/ non-free/' >"$dir/sources/debian.list"
    local apt=(-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$dir/sources" -o Dir::State::lists="$dir/lists"
        -o APT::Sandbox::User=)
    quietly "$CACHE/log/nvidia-smi-update.log" apt-get "${apt[@]}" update
    (cd "$dir" && quietly "$CACHE/log/nvidia-smi-download.log" apt-get "${apt[@]}" download nvidia-smi) ||
        die "no nvidia-smi to test with: put NVIDIA's into $dir (in Debian: apt-get install nvidia-smi, from non-free)"
    quietly "$CACHE/log/nvidia-smi-unpack.log" dpkg-deb -x "$dir"/nvidia-smi_*.deb "$dir/package"
    mv "$dir/package/usr/lib/nvidia/current/nvidia-smi" "$dir/nvidia-smi"
    rm -rf "$dir/package" "$dir/lists" "$dir/sources" "$dir"/nvidia-smi_*.deb
}
