"""Texts of the demo page in English and in Korean."""

from __future__ import annotations

LANGUAGES = ("en", "ko")

_TEXTS = {
    "sentence": ("Image classification with little memory traffic. Drop a picture to see its class, and why.",
                 "메모리 이동이 적은 이미지 분류. 사진을 놓으면 무엇인지, 왜 그런지 보여 줍니다."),
    "links": ("About HarDNet", "HarDNet 소개"),
    "paper": ("Paper", "논문"),
    "repository": ("Repository", "저장소"),
    "licence": ("MIT licence", "MIT 라이선스"),
    "drop": ("Drop pictures here", "여기에 사진을 놓으세요"),
    "choose_files": ("or choose files, or paste", "또는 파일을 고르거나 붙여 넣으세요"),
    "limits": ("{size} MiB each, {count} at once; deleted once classified",
               "장당 {size} MiB, 한 번에 {count}장까지. 분류 후 바로 삭제됩니다"),
    "yours": ("Your picture", "올린 사진"),
    "pixels": ("{width} x {height} pixels", "{width} x {height} 픽셀"),
    "another": ("Choose other pictures", "다른 사진 고르기"),
    "pictures": ("{count} pictures", "사진 {count}장"),
    "uploading": ("Uploading", "올리는 중"),
    "own": ("Your model", "내 모델"),
    "choice": ("Model and weights", "모델과 가중치"),
    "garments": ("Ten garments (Fashion-MNIST)", "의류 10종 (Fashion-MNIST)"),
    "things": ("1000 kinds of things (ImageNet), downloaded on first use",
               "사물 1000종 (ImageNet), 처음 쓸 때 내려받음"),
    "about": ("Top-1 error {error:.2f} % on {data}, reported by {who}.",
              "{data} 1순위 오류율 {error:.2f} %. 보고: {who}."),
    "classes_known": ("{count} classes: {names}.", "분류 {count}개: {names}."),
    "examples": ("Examples", "예제"),
    "empty": ("The result appears here", "결과가 여기에 나타납니다"),
    "empty_more": (
        "The most probable classes, and for each a map of the places that speak for it. Several pictures give a table.",
        "가장 가능성 높은 분류와, 각 분류의 근거 위치 지도를 보여 줍니다. 여러 장이면 표로 보여 줍니다.",
    ),
    "loading": ("Loading {model}", "{model} 불러오는 중"),
    "loading_more": ("The first use of these weights takes longer.",
                     "이 가중치를 처음 쓸 때는 시간이 더 걸립니다."),
    "downloaded": ("{done:.1f} of {total:.1f} MB downloaded", "{total:.1f} MB 중 {done:.1f} MB 내려받음"),
    "classifying": ("Classifying", "분류하는 중"),
    "progress": ("{done} of {total} pictures", "사진 {total}장 중 {done}장"),
    "classes": ("Choose a class to see its map", "분류를 고르면 그 지도를 보여 줍니다"),
    "map": ("Evidence for {label}", "{label}의 근거"),
    "none": ("no evidence", "근거 없음"),
    "most": ("most", "가장 큼"),
    "opacity": ("Opacity of the map", "지도 불투명도"),
    "whole": ("The network gets the picture at {side} x {side} pixels.",
              "신경망은 사진을 {side} x {side} 픽셀로 바꾸어 봅니다."),
    "crop": ("The network gets the framed part at {side} x {side} pixels.",
             "신경망은 테두리 안쪽을 {side} x {side} 픽셀로 바꾸어 봅니다."),
    "cells": (
        "The map (Grad-CAM) has {cells} x {cells} cells, enlarged smoothly: it shows the region, not the outline.",
        "Grad-CAM 지도는 {cells} x {cells}칸을 부드럽게 키운 것이라, 윤곽이 아니라 영역을 보여 줍니다.",
    ),
    "only": ("These weights know ten garments only, whatever the picture shows.",
             "이 가중치는 사진 내용과 관계없이 의류 10종만 압니다."),
    "switch": ("Use ImageNet weights", "ImageNet 가중치 사용"),
    "facts": (
        "PyTorch {engine}, {precision}, {device}, warm: network {network:.1f} ms, preparation {prepared:.1f} ms",
        "PyTorch {engine}, {precision}, {device}, 워밍업 후 측정: 신경망 {network:.1f} ms, 전처리 {prepared:.1f} ms",
    ),
    "table": (
        "{count} pictures classified by {model}; network {network:.1f} ms each ({engine}, {precision}, {device}, warm)",
        "{model}로 사진 {count}장을 분류했습니다. 신경망 장당 {network:.1f} ms "
        "({engine}, {precision}, {device}, 워밍업 후)",
    ),
    "csv": ("Save as CSV", "CSV로 저장"),
    "picture": ("Picture", "사진"),
    "class": ("Class", "분류"),
    "probability": ("Probability", "확률"),
    "unreadable": ("This file is not a picture that can be read here",
                   "여기서 읽을 수 있는 사진 파일이 아닙니다"),
    "failed": ("{failed} of {count} files could not be read.", "파일 {count}개 중 {failed}개를 읽지 못했습니다."),
    "back": ("Back to the table", "표로 돌아가기"),
    "no_weights": ("{model} could not be loaded", "{model} 가중치를 불러올 수 없습니다"),
    "network": ("This server does not reach the internet.", "이 서버는 인터넷에 연결할 수 없습니다."),
    "host": ("The site that has the weights does not answer.", "가중치를 제공하는 사이트가 응답하지 않습니다."),
    "damaged": ("The file that was received is damaged.", "받은 파일이 손상되었습니다."),
    "log": ("The server's log says why.", "이유는 서버 로그에 있습니다."),
    "packaged": ("Use the built-in weights (ten garments)", "내장 가중치 사용 (의류 10종)"),
    "fault": ("The server failed", "서버 오류입니다"),
    "gone": ("The picture is no longer on the server: upload it again", "사진이 서버에 없습니다. 다시 올려 주세요"),
    "large": ("The file has more than {size} MiB", "파일이 {size} MiB보다 큽니다"),
    "refused": ("The server did not accept the file: try again later",
                "서버가 파일을 받지 않았습니다. 잠시 후 다시 올려 주세요"),
    "again": ("Try again", "다시 시도"),
}  # fmt: skip
# Names whose English is the key: the classes of the packaged weights, what the examples show, the catalogue's words.
_KOREAN = {
    "T-shirt/top": "티셔츠/상의", "Trouser": "바지", "Pullover": "풀오버", "Dress": "원피스", "Coat": "코트",
    "Sandal": "샌들", "Shirt": "셔츠", "Sneaker": "운동화", "Bag": "가방", "Ankle boot": "앵클부츠",
    "camera": "카메라", "cat": "고양이", "coffee": "커피", "rocket": "로켓",
    "ImageNet-1k validation": "ImageNet-1k 검증 세트",
    "Fashion-MNIST test": "Fashion-MNIST 시험 세트",
    "the HarDNet authors (PyTorch Hub page)": "HarDNet 저자(PyTorch Hub 페이지)",
    "osmr (imgclsmob)": "osmr(imgclsmob)",
    "this project (measured)": "이 프로젝트(직접 측정)",
}  # fmt: skip


def translate(language: str, key: str, **values: object) -> str:
    """Return a text in one of :data:`LANGUAGES`, with its values filled in."""
    texts = (key, _KOREAN[key]) if key in _KOREAN else _TEXTS[key]
    return texts[LANGUAGES.index(language)].format(**values)
