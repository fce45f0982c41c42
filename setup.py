"""Installs mmclipq, with its configs and tools inside the package as ``.mim``."""

import os
import platform
import runpy
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithMim(build_py):
    """Copies configs and tools to ``mmclipq/.mim`` as OpenMMLab's packages do."""

    def run(self):
        super().run()
        package = ROOT if self.editable_mode else Path(self.build_lib)
        for folder in ('configs', 'tools'):
            target = package / 'mmclipq' / '.mim' / folder
            target.parent.mkdir(exist_ok=True)
            if target.is_symlink():
                target.unlink()
            rmtree(target, ignore_errors=True)
            if self.editable_mode:
                target.symlink_to(ROOT / folder)
            else:
                copytree(ROOT / folder, target, ignore=ignore_patterns('__pycache__'))
        # MMEngine reads this index before it looks for a config by its path.
        (package / 'mmclipq' / '.mim' / 'model-index.yml').write_text('Import: []\n')


class BuildOperators(build_ext):
    """Lets NVIDIA's compiler build the CUDA operators, which are no Python module."""

    def get_ext_filename(self, fullname):
        # In an editable build the name comes without its packages.
        if fullname.split('.')[-1] == '_cuda':
            return os.path.join(*fullname.split('.')) + '.so'
        return super().get_ext_filename(fullname)

    def build_extension(self, ext):
        if ext.name != CUDA:
            super().build_extension(ext)
            return
        out = Path(self.get_ext_fullpath(ext.name))
        if out.exists() and not self.force:
            newest = max(Path(path).stat().st_mtime for path in ext.depends)
            if out.stat().st_mtime > newest:
                return
        out.parent.mkdir(parents=True, exist_ok=True)
        listed = os.environ.get('TORCH_CUDA_ARCH_LIST') or cuda_build()['ARCHITECTURES']
        print(f'mmclipq: building the CUDA operators for {listed}')
        cuda_build()['build'](out, listed)


CUDA = 'mmclipq.ops.cuda._cuda'


def cuda_build() -> dict:
    """The functions of the script that builds the CUDA operators."""
    return runpy.run_path(str(ROOT / 'mmclipq' / 'ops' / 'csrc' / 'build.py'))


def cuda_extensions() -> list[Extension]:
    """The CUDA operators, where torch sees a GPU and there is nvcc, or with ``FORCE_CUDA=1``."""
    forced = os.environ.get('FORCE_CUDA') == '1'
    if not forced:
        try:
            import torch
        except ImportError:
            return []
        if not torch.cuda.is_available():
            return []
        if cuda_build()['find_nvcc']() is None:
            print('mmclipq: found a GPU but no nvcc, building without the CUDA operators')
            return []
    files = [os.path.relpath(path, ROOT) for path in cuda_build()['DEPENDS']]
    return [Extension(CUDA, [], depends=files, optional=not forced)]


# The folder of a processor's own kernels.
MACHINES = {'x86_64': 'x86', 'AMD64': 'x86', 'aarch64': 'arm', 'arm64': 'arm'}


def cpu_extensions() -> list[Extension]:
    """The CPU operators, with oneDNN where its headers are (``pip install onednn-devel-cpu-gomp``).

    They are optional: without a compiler the reference backend does their work.
    """
    machine = MACHINES.get(platform.machine())
    if machine is None:
        return []
    csrc = ROOT / 'mmclipq' / 'ops' / 'csrc'
    folders = [csrc / 'cpu', csrc / 'cpu' / machine]
    prefix = Path(os.environ.get('ONEDNN_ROOT', sys.prefix))
    onednn: dict[str, list] = {}
    includes = [str(folder) for folder in folders]
    if (prefix / 'include' / 'dnnl.hpp').is_file():
        onednn = dict(
            library_dirs=[str(prefix / 'lib')],
            runtime_library_dirs=[str(prefix / 'lib')],
            libraries=['dnnl'],
            define_macros=[('CLIPQ_ONEDNN', '1')],
        )
        includes.append(str(prefix / 'include'))
    else:
        print(f'mmclipq: found no oneDNN under {prefix}, building the CPU operators without it')
    sources = sorted(path for folder in folders for path in folder.glob('*.cpp'))
    headers = sorted(path for folder in [*folders, csrc / 'common'] for path in folder.glob('*.h'))
    return [
        Extension(
            'mmclipq.ops.cpu._cpu',
            [os.path.relpath(path, ROOT) for path in sources],
            depends=[os.path.relpath(path, ROOT) for path in headers],
            include_dirs=includes,
            **onednn,
            # Fused multiply-adds would round once where the arithmetic rounds twice.
            extra_compile_args=[
                *('-O3', '-std=c++17', '-fopenmp', '-ffp-contract=off', '-fvisibility=hidden'),
            ],
            extra_link_args=['-fopenmp'],
            language='c++',
            optional=True,
        )
    ]


def version() -> str:
    scope: dict[str, str] = {}
    exec((ROOT / 'mmclipq' / 'version.py').read_text(), scope)
    return scope['__version__']


setup(
    name='mmclipq',
    version=version(),
    description='Clipping-based power-of-two int8 quantization for MMDetection',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    packages=find_packages(include=['mmclipq', 'mmclipq.*']),
    package_data={
        'mmclipq.analysis.page': ['page.html', 'page.css'],
        'mmclipq.experiments': ['definitions/*.yaml', 'definitions/datasets/*.yaml'],
    },
    ext_modules=[*cpu_extensions(), *cuda_extensions()],
    cmdclass={'build_ext': BuildOperators, 'build_py': BuildWithMim},
    python_requires='>=3.10',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    extras_require={
        'cpu': ['onednn-cpu-gomp==2023.2.0'],
        'export': ['onnx==1.23.2', 'onnxruntime==1.32.0', 'openvino==2026.4.1'],
        'bench': ['nncf==3.4.0', 'onnx', 'onnxruntime==1.32.0', 'openvino==2026.4.1'],
    },
    install_requires=[
        'constriction>=0.5,<0.6',
        'jinja2',
        'matplotlib',
        'mmcv>=2.0.0rc4,<2.2.0',
        'mmdet>=3.3,<4',
        'mmengine>=0.10,<1',
        'pillow',
        'pycocotools',
        'safetensors>=0.4',
        'torch>=2.4',
        'tqdm',
        'zstandard>=0.20',
    ],
)
