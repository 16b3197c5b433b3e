# The sources of a layer are all .cc files of its folder.
function(at_moe_layer_sources result)
  set(all "")
  foreach(layer IN LISTS ARGN)
    file(GLOB found CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/native/${layer}/*.cc")
    list(APPEND all ${found})
  endforeach()
  set(${result} ${all} PARENT_SCOPE)
endfunction()
