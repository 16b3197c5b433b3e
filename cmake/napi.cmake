# Node-API headers come from two npm packages, so nothing is downloaded and the Node version does not matter.
find_program(AT_MOE_NODE node REQUIRED)
execute_process(
  COMMAND ${AT_MOE_NODE} -p "require('node-api-headers').include_dir + ';' + require('node-addon-api').include_dir"
  WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
  OUTPUT_VARIABLE napi_include
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE napi_failed)
if(napi_failed)
  message(FATAL_ERROR "node-api-headers and node-addon-api are missing: run `npm ci` first")
endif()
set(napi_include_absolute "")
foreach(folder IN LISTS napi_include)
  get_filename_component(folder "${folder}" ABSOLUTE BASE_DIR "${PROJECT_SOURCE_DIR}")
  list(APPEND napi_include_absolute "${folder}")
endforeach()

add_library(at_moe_napi INTERFACE)
target_include_directories(at_moe_napi SYSTEM INTERFACE ${napi_include_absolute})
target_compile_definitions(at_moe_napi INTERFACE NAPI_VERSION=8 NAPI_CPP_EXCEPTIONS
                                                 NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS)
# Windows only: the import library and the delay-load hook, named by cmake-js.
if(CMAKE_JS_SRC)
  target_sources(at_moe_napi INTERFACE ${CMAKE_JS_SRC})
endif()
target_link_libraries(at_moe_napi INTERFACE ${CMAKE_JS_LIB})
