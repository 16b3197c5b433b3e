# Google Highway, headers only: the system's, else a pinned release where the network allows.
find_path(AT_MOE_HIGHWAY_INCLUDE hwy/highway.h DOC "folder that holds hwy/highway.h")
if(NOT AT_MOE_HIGHWAY_INCLUDE)
  message(STATUS "hwy/highway.h not found (Debian and Ubuntu: apt-get install libhwy-dev); fetching Highway 1.2.0")
  include(FetchContent)
  FetchContent_Declare(
    highway
    URL https://github.com/google/highway/archive/refs/tags/1.2.0.tar.gz
    URL_HASH SHA256=7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343
    SOURCE_SUBDIR headers-only)
  FetchContent_MakeAvailable(highway)
  set(AT_MOE_HIGHWAY_INCLUDE "${highway_SOURCE_DIR}" CACHE PATH "" FORCE)
endif()

add_library(at_moe_highway INTERFACE)
target_include_directories(at_moe_highway SYSTEM INTERFACE "${AT_MOE_HIGHWAY_INCLUDE}")
target_compile_definitions(at_moe_highway INTERFACE HWY_COMPILE_ONLY_STATIC)
