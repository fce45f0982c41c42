"""The load test against a server that answers as the example does."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / 'examples'
sys.path.insert(0, str(EXAMPLES))
import load_test  # noqa: E402  # lies in the folder above


class Answers(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    asked: list[dict] = []
    answer, status = {'bboxes': []}, 200

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.asked.append(body)
        content = json.dumps(self.answer).encode()
        self.send_response(self.status)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *given):
        pass


@pytest.fixture
def port():
    Answers.asked, Answers.status = [], 200
    server = ThreadingHTTPServer(('127.0.0.1', 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_requests_follow_one_another_until_the_end(port):
    times = load_test.ask(port, [b'{"image": 1}', b'{"image": 2}'], time.perf_counter() + 0.3)
    assert len(times) == len(Answers.asked) > 2
    assert [body['image'] for body in Answers.asked[:3]] == [1, 2, 1]
    assert min(times) > 0


def test_an_answer_that_is_none_ends_it(port):
    Answers.status = 500
    with pytest.raises(RuntimeError, match='found answer 500'):
        load_test.ask(port, [b'{}'], time.perf_counter() + 5)


def test_a_table_of_each_load(port, tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'no image')
    command = [sys.executable, str(EXAMPLES / 'load_test.py'), str(tmp_path), '--port', str(port)]
    command += ['--clients', '1,3', '--seconds', '0.2', '--server', str(os.getpid())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split('|')[1:-1] for line in done.stdout.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == [1, 3]
    assert all(float(cell) > 0 for row in rows for cell in row[1:])
    assert Answers.asked[0] == {'image': 'bm8gaW1hZ2U='}


@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='no /proc of Linux')
def test_memory_counts_what_the_process_started():
    child = subprocess.Popen([sys.executable, '-c', 'print(1, flush=True); input()'],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    child.stdout.readline()
    assert child.pid in load_test.family(os.getpid())
    both, alone = load_test.memory(os.getpid()), load_test.memory(child.pid)
    child.communicate(b'\n')
    assert both > alone > 1
    assert child.pid not in load_test.family(os.getpid())
