# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
#
# Finds nvcc and builds CUDA sources with it, without CMake's own CUDA language: that one expects the layout of an
# installed toolkit, and nvcc from PyPI (.ci/tools) has another.

# kvquant_find_nvcc(VAR): the first nvcc of -DKVQUANT_NVCC, env KVQUANT_NVCC, CUDA_HOME, CUDA_PATH, PATH, .venv.
# One that is named but does not exist is an error.
function(kvquant_find_nvcc var)
  foreach(named "${KVQUANT_NVCC}" "$ENV{KVQUANT_NVCC}")
    if(named)
      if(NOT EXISTS "${named}" OR IS_DIRECTORY "${named}")
        message(FATAL_ERROR "KVQUANT_NVCC=${named} is not a file. Name the nvcc binary, or leave it unset to build "
                            "without CUDA or with the nvcc of CUDA_HOME, PATH or .venv.")
      endif()
      set(${var} "${named}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  file(GLOB venv_bins "${CMAKE_CURRENT_SOURCE_DIR}/../.venv/lib/python3*/site-packages/nvidia/cu13/bin")
  find_program(nvcc nvcc PATHS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" NO_CACHE NO_DEFAULT_PATH)
  find_program(nvcc nvcc PATHS ${venv_bins} NO_CACHE)
  if(nvcc)
    set(${var} "${nvcc}" PARENT_SCOPE)
  else()
    set(${var} "" PARENT_SCOPE)
  endif()
endfunction()

# kvquant_cuda_library(NAME SOURCE...): lib<NAME>.so with machine code for sm_80 (A100), sm_86 (RTX 30, A10), sm_89
# (RTX 40, L4) and sm_90 (H100), PTX for later GPUs, and the CUDA runtime linked statically. Sources in
# KVQUANT_HOPPER_SOURCES are compiled for sm_90a instead of sm_90: they use instructions that no later GPU has.
function(kvquant_cuda_library name)
  if(NOT ARGN)
    message(STATUS "No CUDA sources are listed: lib${name} is not built")
    return()
  endif()
  kvquant_find_nvcc(nvcc)
  if(NOT nvcc)
    message(STATUS "No nvcc found: lib${name} is not built. Install the CUDA toolkit or run .ci/tools to have it.")
    return()
  endif()
  get_filename_component(toolkit "${nvcc}" DIRECTORY)
  get_filename_component(toolkit "${toolkit}" DIRECTORY)
  execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE version RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${nvcc} --version failed (${failed}). Repair it, or name another by -DKVQUANT_NVCC.")
  endif()
  string(REGEX REPLACE ".*release ([0-9.]+).*" "\\1" version "${version}")
  message(STATUS "lib${name}: nvcc ${version} (${nvcc})")

  set(codes)
  foreach(arch 80 86 89 90)
    list(APPEND codes -gencode "arch=compute_${arch},code=sm_${arch}")
  endforeach()
  list(APPEND codes -gencode "arch=compute_90,code=compute_90")
  set(flags -O3 -std=c++17 -ccbin "${CMAKE_CXX_COMPILER}" "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"
            "-I${CMAKE_CURRENT_SOURCE_DIR}/src" ${codes})
  if(version VERSION_GREATER_EQUAL 13)
    # A third of the bytes; drivers for CUDA 13 unpack it.
    list(APPEND flags --compress-mode=size)
  endif()
  if(KVQUANT_WERROR)
    list(APPEND flags -Werror all-warnings)
  endif()

  set(objects)
  foreach(source ${ARGN})
    string(REPLACE "/" "_" stem "${source}")
    set(object "${CMAKE_CURRENT_BINARY_DIR}/${name}/${stem}.o")
    file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/${name}")
    set(source_flags ${flags})
    if(source IN_LIST KVQUANT_HOPPER_SOURCES)
      list(TRANSFORM source_flags REPLACE "^arch=compute_90,code=sm_90$" "arch=compute_90a,code=sm_90a")
    endif()
    add_custom_command(
      OUTPUT "${object}"
      COMMAND "${nvcc}" ${source_flags} -MD -MF "${object}.d" -c -o "${object}" "${CMAKE_CURRENT_SOURCE_DIR}/${source}"
      DEPENDS "${source}" DEPFILE "${object}.d"
      COMMENT "nvcc ${source}" VERBATIM)
    list(APPEND objects "${object}")
  endforeach()
  set(library "${CMAKE_CURRENT_BINARY_DIR}/lib${name}.so")
  # The runtime of a toolkit lies in lib64, that of the PyPI packages in lib.
  add_custom_command(
    OUTPUT "${library}"
    COMMAND "${nvcc}" -shared -ccbin "${CMAKE_CXX_COMPILER}" ${codes} "-L${toolkit}/lib64" "-L${toolkit}/lib"
            -cudart static -o "${library}" ${objects} -ldl
    DEPENDS ${objects} COMMENT "Linking lib${name}.so" VERBATIM)
  add_custom_target(${name} ALL DEPENDS "${library}")
  install(PROGRAMS "${library}" DESTINATION "native/${KVQUANT_PLATFORM}")
endfunction()
