# Builds the CUDA programs of fixtures/programs; sourced after common.sh.
#
# Four Python environments, because that is how NVIDIA publishes its tools without a login:
#   .cache/nvcc      nvcc 13.5 with libcudart 13.5, and libcudart 12.9 beside it (130 MB to download)
#   .cache/runtimes  libcudart 11.8 and 12.4 (1.8 MB)
#   .cache/cudart    libcudart 13.5 and its headers alone, for the demo (2.7 MB)
#   .cache/python    cuda-python, NVRTC and CuPy (260 MB)
# Programs end up in .cache/programs as NAME-VERSION-LINKAGE, like vecadd-13-static.

PROGRAMS=$CACHE/programs
SOURCES=$REPO/fixtures/programs

# The programs made with each runtime, static and dynamic, and those made once.
PROGRAMS_ALL_RUNTIMES="vecadd suite"
PROGRAMS_ONCE="bad_launch hostmem oob peers textures threads"
# Those that call the driver API.
PROGRAMS_DRIVER="driver_coherent driver_library driver_rest driver_virtual driver_graph driver_copy driver_misc driver_pinned driver_errors driver_faults driver_hostile"

# newer FILE SOURCE...: FILE is there and newer than each SOURCE.
newer() {
    local file=$1 source
    shift
    [ -e "$file" ] || return 1
    for source in "$@"; do
        [ "$file" -nt "$source" ] || return 1
    done
}

# cuda_library NAME DIR LIBRARY: the library alone, under a folder that tells its version.
cuda_library() {
    mkdir -p "$CACHE/lib/$1"
    ln -sfn "$2/$3" "$CACHE/lib/$1/$3"
}

# cuda_libraries NAME DIR LIBRARY: a folder with the names that the linker looks for, since the
# wheels leave out libcudart.so.
cuda_libraries() {
    local dir=$CACHE/lib/$1
    cuda_library "$@"
    ln -sfn "$2/$3" "$dir/libcudart.so"
    ln -sfn "$2/libcudart_static.a" "$dir/libcudart_static.a"
    echo "$dir"
}

# compile_cu OUTPUT NVCC_ARGUMENT...: one nvcc run, written beside and moved into place.
compile_cu() {
    local output=$1
    shift
    note "nvcc ${output##*/}"
    quietly "$CACHE/log/nvcc-${output##*/}.log" "$NVCC" -O1 -o "$output.new" "$@"
    mv "$output.new" "$output"
}

# build_programs: everything that needs nvcc. Does nothing where nothing changed.
build_programs() {
    need_compilers
    venv nvcc "$REPO/scripts/lib/requirements-nvcc.txt"
    local site cuda13 cuda12 lib13 lib12 name source common
    site=$(site_packages nvcc)
    cuda13=$site/nvidia/cu13
    cuda12=$site/nvidia/cuda_runtime
    NVCC=$cuda13/bin/nvcc
    lib13=$(cuda_libraries 13 "$cuda13/lib" libcudart.so.13)
    lib12=$(cuda_libraries 12 "$cuda12/lib" libcudart.so.12)
    common=("$SOURCES/check.h" "$SOURCES/kernels.cuh" "$REPO/scripts/lib/cuda.sh" "$CACHE/nvcc/.stamp")
    # CUDA 12 compressed its fatbins with LZ4, which nvcc 13 calls speed; its own default is zstd.
    local like12=(-I"$cuda12/include" -L"$lib12" --compress-mode=speed) mode
    mkdir -p "$PROGRAMS"
    for name in $PROGRAMS_ALL_RUNTIMES; do
        source=$SOURCES/$name.cu
        newer "$PROGRAMS/$name-13-static" "$source" "${common[@]}" ||
            compile_cu "$PROGRAMS/$name-13-static" "$source"
        newer "$PROGRAMS/$name-13-shared" "$source" "${common[@]}" ||
            compile_cu "$PROGRAMS/$name-13-shared" --cudart=shared -L"$lib13" -Xlinker -rpath="$lib13" "$source"
        newer "$PROGRAMS/$name-12-static" "$source" "${common[@]}" ||
            compile_cu "$PROGRAMS/$name-12-static" "${like12[@]}" "$source"
        newer "$PROGRAMS/$name-12-shared" "$source" "${common[@]}" ||
            compile_cu "$PROGRAMS/$name-12-shared" --cudart=shared "${like12[@]}" -Xlinker -rpath="$lib12" "$source"
    done
    for name in $PROGRAMS_ONCE; do
        newer "$PROGRAMS/$name-13-static" "$SOURCES/$name.cu" "${common[@]}" ||
            compile_cu "$PROGRAMS/$name-13-static" "$SOURCES/$name.cu"
    done
    for mode in size none; do
        newer "$PROGRAMS/suite_$mode-13-static" "$SOURCES/suite.cu" "${common[@]}" ||
            compile_cu "$PROGRAMS/suite_$mode-13-static" --compress-mode="$mode" "$SOURCES/suite.cu"
    done
    newer "$PROGRAMS/threads_ptds-13-static" "$SOURCES/threads.cu" "${common[@]}" ||
        compile_cu "$PROGRAMS/threads_ptds-13-static" --default-stream per-thread "$SOURCES/threads.cu"
    newer "$PROGRAMS/demo_kernels.cubin" "$SOURCES/demo_kernels.cu" "${common[@]}" ||
        compile_cu "$PROGRAMS/demo_kernels.cubin" -cubin -arch=sm_90 "$SOURCES/demo_kernels.cu"
    build_runtime
    build_plain lifecycle
    build_plain handles
    for name in $PROGRAMS_DRIVER; do
        build_driver "$name" "$cuda13/include"
    done
}

# build_runtime: a program that takes any runtime, the runtimes that no compiler here can link with, and its kernels.
build_runtime() {
    venv runtimes "$REPO/scripts/lib/requirements-runtimes.txt"
    local site
    site=$(site_packages runtimes)/nvidia
    cuda_library 11.8 "$site/cuda_runtime/lib" libcudart.so.11.0
    cuda_library 12.4 "$site/cuda_runtime/lib" libcudart.so.12
    build_plain runtime
    newer "$PROGRAMS/demo_kernels.fatbin" "$SOURCES/demo_kernels.cu" "${common[@]}" ||
        compile_cu "$PROGRAMS/demo_kernels.fatbin" -fatbin -gencode arch=compute_75,code=compute_75 \
            --compress-mode=speed "$SOURCES/demo_kernels.cu"
}

# build_driver NAME INCLUDES: a program that loads the driver by itself, with the types of NVIDIA's header.
build_driver() {
    newer "$PROGRAMS/$1" "$SOURCES/$1.c" "$SOURCES/driver.h" "$REPO/scripts/lib/cuda.sh" && return
    note "gcc $1"
    quietly "$CACHE/log/gcc-$1.log" gcc -std=gnu11 -O1 -Wall -Wextra -Werror -Wno-deprecated-declarations -I"$2" -o "$PROGRAMS/$1.new" \
        "$SOURCES/$1.c" -ldl -lpthread
    mv "$PROGRAMS/$1.new" "$PROGRAMS/$1"
}

# build_plain NAME: a program that loads the driver by itself and needs no CUDA header.
build_plain() {
    newer "$PROGRAMS/$1" "$SOURCES/$1.c" "$REPO/scripts/lib/cuda.sh" && return
    note "gcc $1"
    quietly "$CACHE/log/gcc-$1.log" gcc -std=gnu11 -O1 -Wall -Wextra -Werror -o "$PROGRAMS/$1.new" \
        "$SOURCES/$1.c" -ldl -lpthread -lm
    mv "$PROGRAMS/$1.new" "$PROGRAMS/$1"
}

# build_demo: the one program that needs no nvcc, only NVIDIA's runtime library and g++.
build_demo() {
    need_compilers
    venv cudart "$REPO/scripts/lib/requirements-cudart.txt"
    local cuda
    cuda=$(site_packages cudart)/nvidia/cu13
    mkdir -p "$PROGRAMS"
    newer "$PROGRAMS/demo" "$SOURCES/demo.cpp" "$SOURCES/check.h" "$CACHE/cudart/.stamp" && return
    note "g++ demo, with libcudart_static.a"
    quietly "$CACHE/log/g++-demo.log" g++ -O1 -Wall -Wextra -I"$cuda/include" -o "$PROGRAMS/demo.new" \
        "$SOURCES/demo.cpp" "$cuda/lib/libcudart_static.a" -lpthread -ldl -lrt
    mv "$PROGRAMS/demo.new" "$PROGRAMS/demo"
}

# build_python: the environment of the Python programs.
build_python() { venv python "$REPO/scripts/lib/requirements-python.txt"; }

# build_ptx: makes the committed demo_kernels.ptx anew. The version line is lowered to the oldest
# that has every instruction in it, so that older drivers take it too.
build_ptx() {
    build_programs
    local ptx=$SOURCES/demo_kernels.ptx
    note "nvcc -ptx demo_kernels.ptx"
    quietly "$CACHE/log/nvcc-ptx.log" "$NVCC" -ptx -arch=compute_75 -o "$CACHE/demo_kernels.ptx" "$SOURCES/demo_kernels.cu"
    sed 's/^\.version .*/.version 7.0/' "$CACHE/demo_kernels.ptx" >"$ptx"
}
