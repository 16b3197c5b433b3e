// The addon with the emulated device: where it is, and whether this platform has one.
'use strict';

const folder = 'build/emulated'; // AT_MOE_PREBUILD of who uses it

module.exports = {
  hasEmulated: process.platform === 'linux' && process.arch === 'x64',
  folder,
  addon: `${folder}/build/Release/at_moe.node`,
};
